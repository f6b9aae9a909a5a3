"""Random crops that depend only on the seed, the epoch and the sample, not on draw order.

Every draw is a hash of a counter: `key = mix(mix(mix(mix(seed) + epoch) + sample) + view)` and
`u_i = mix(key + i * gamma) / 2^64`, with the output function `mix` and the increment gamma of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int, check_int_array, check_number, check_range
from .compiled import compiled

_TRIES = 10  # as in torchvision
_FLIP_DRAW = 4 * _TRIES  # the first draw that no crop uses

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@compiled(inline="always")
def _mix(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


@compiled()
def _key(seed: Any, epoch: Any, sample: Any, view: Any) -> Any:
    key = _mix(np.uint64(seed) + _GAMMA)
    key = _mix(key + np.uint64(epoch))
    key = _mix(key + np.uint64(sample))
    return _mix(key + np.uint64(view))


@compiled()
def _uniform(key: Any, draw: Any, low: Any, high: Any) -> Any:
    # A float64 in [0, 1) holds 53 bits.
    bits = _mix(key + np.uint64(draw) * _GAMMA) >> np.uint64(11)
    return low + (high - low) * (np.float64(bits) * 2.0**-53)


@compiled()
def draw_crop(
    seed: Any, epoch: Any, sample: Any, view: Any, height: Any, width: Any, scale: Any, ratio: Any
) -> Any:
    """Draw one crop of `random_crops` without checks."""
    key = _key(seed, epoch, sample, view)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_TRIES):
        area = height * width * _uniform(key, 4 * attempt, scale[0], scale[1])
        aspect = math.exp(_uniform(key, 4 * attempt + 1, low, high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(_uniform(key, 4 * attempt + 2, 0, height - crop_height + 1))
            left = int(_uniform(key, 4 * attempt + 3, 0, width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = int(height), int(width)
    if width < ratio[0] * height:
        crop_height = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        crop_width = max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@compiled()
def draw_flip(seed: Any, epoch: Any, sample: Any, view: Any, probability: Any) -> Any:
    """Draw one flip of `random_flips` without checks."""
    return _uniform(_key(seed, epoch, sample, view), _FLIP_DRAW, 0.0, 1.0) < probability


@compiled()
def _draw_crops(
    heights: Any, widths: Any, ids: Any, seed: Any, epoch: Any, scale: Any, ratio: Any, view: Any
) -> Any:
    crops = np.empty((len(ids), 4), dtype=np.int64)
    for row in range(len(ids)):
        crop = draw_crop(seed, epoch, ids[row], view, heights[row], widths[row], scale, ratio)
        for column in range(4):
            crops[row, column] = crop[column]
    return crops


@compiled()
def _draw_flips(ids: Any, seed: Any, epoch: Any, probability: Any, view: Any) -> Any:
    flips = np.empty(len(ids), dtype=np.bool_)
    for row in range(len(ids)):
        flips[row] = draw_flip(seed, epoch, ids[row], view, probability)
    return flips


def random_crops(
    heights: ArrayLike,
    widths: ArrayLike,
    ids: ArrayLike,
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    view: int = 0,
) -> NDArray[np.int64]:
    """Draw the random resized crop of each sample (Szegedy et al., arXiv 1409.4842).

    Up to ten tries draw an area H W u, with u uniform in `scale`, and an aspect ratio whose
    logarithm is uniform. The first crop that fits into the image is placed uniformly. If no crop
    fits, the result is the largest centred crop of an allowed aspect ratio.

    Args:
        heights: image heights in pixels `(N,)`, at least 1.
        widths: image widths in pixels `(N,)`, at least 1.
        ids: sample ids `(N,)`, at least 0.
        seed: seed of the run, at least 0.
        epoch: number of the epoch, at least 0.
        scale: smallest and largest area, as fractions of the image.
        ratio: smallest and largest width / height.
        view: number of the crop where one image gives several, at least 0.

    Returns:
        Boxes `(N, 4)`: top, left, height, width.
    """
    samples = check_int_array("ids", ids, at_least=0)
    rows = check_int_array("heights", heights, at_least=1)
    columns = check_int_array("widths", widths, at_least=1)
    if not len(rows) == len(columns) == len(samples):
        raise ValueError(
            f"`heights`, `widths` and `ids` must have one entry per sample; got {len(rows)}, "
            f"{len(columns)} and {len(samples)}."
        )
    scale, ratio = check_range("scale", scale, at_most=1.0), check_range("ratio", ratio)
    run, time, crop = _as_counters(seed, epoch, view)
    crops: NDArray[np.int64] = _draw_crops(rows, columns, samples, run, time, scale, ratio, crop)
    return crops


def random_flips(
    ids: ArrayLike, seed: int, epoch: int, probability: float = 0.5, view: int = 0
) -> NDArray[np.bool_]:
    """Draw which samples are mirrored, each with `probability`.

    Args:
        ids: sample ids `(N,)`, at least 0.
        seed: seed of the run, at least 0.
        epoch: number of the epoch, at least 0.
        probability: probability of a flip.
        view: number of the crop where one image gives several, at least 0.

    Returns:
        Flags `(N,)`, true for mirrored samples.
    """
    samples = check_int_array("ids", ids, at_least=0)
    chance = check_number("probability", probability, at_least=0, at_most=1)
    run, time, crop = _as_counters(seed, epoch, view)
    flips: NDArray[np.bool_] = _draw_flips(samples, run, time, chance, crop)
    return flips


def _as_counters(seed: int, epoch: int, view: int) -> list[np.uint64]:
    numbers = {"seed": seed, "epoch": epoch, "view": view}
    return [np.uint64(check_int(name, value, 0, (1 << 64) - 1)) for name, value in numbers.items()]
