"""Random crops that depend on the sample and the epoch alone, not on who draws them or when.

Every draw is a hash of a counter: `key = mix(mix(mix(mix(seed) + epoch) + sample) + view)` and
`u_i = mix(key + i * gamma) / 2^64`, with the output function `mix` and the increment gamma of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .compiled import compiled

_TRIES = 10  # crops drawn before the largest one in the centre is taken, as in torchvision
_FLIP_DRAW = 4 * _TRIES  # the draws before it are for the crop

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
    # 53 bits are what a float64 in [0, 1) holds.
    bits = _mix(key + np.uint64(draw) * _GAMMA) >> np.uint64(11)
    return low + (high - low) * (np.float64(bits) * 2.0**-53)


@compiled()
def draw_crop(
    seed: Any, epoch: Any, sample: Any, view: Any, height: Any, width: Any, scale: Any, ratio: Any
) -> Any:
    """Draw one crop of `random_crops`; nothing is checked."""
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
    """Draw one flip of `random_flips`; nothing is checked."""
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

    Up to ten times: area = H W u with u uniform in `scale`, log aspect uniform in log `ratio`, and
    if that fits, a place uniform in the image. Otherwise the largest crop of an allowed aspect, in
    the centre.

    Args:
        heights: of the images in pixels `(N,)`, at least 1.
        widths: of the images in pixels `(N,)`, at least 1.
        ids: sample ids `(N,)`, at least 0.
        seed: of the run, at least 0.
        epoch: at least 0.
        scale: smallest and largest area, as shares of the image.
        ratio: smallest and largest width / height.
        view: number of the crop, where one image gives several; at least 0.

    Returns:
        Boxes `(N, 4)`: top, left, height, width.

    Raises:
        TypeError: what must be integers are none.
        ValueError: shapes differ, or a value is out of range.
    """
    samples = _as_counts(ids, "ids", least=0)
    rows, columns = _as_counts(heights, "heights"), _as_counts(widths, "widths")
    if not len(rows) == len(columns) == len(samples):
        raise ValueError(
            f"`heights`, `widths` and `ids` must have one entry per sample; got {len(rows)}, "
            f"{len(columns)} and {len(samples)}. Pass those of the same samples."
        )
    scale, ratio = as_range(scale, "scale", most=1.0), as_range(ratio, "ratio")
    counter = [_as_counter(*pair) for pair in ((seed, "seed"), (epoch, "epoch"), (view, "view"))]
    crops: NDArray[np.int64] = _draw_crops(
        rows, columns, samples, counter[0], counter[1], scale, ratio, counter[2]
    )
    return crops


def random_flips(
    ids: ArrayLike, seed: int, epoch: int, probability: float = 0.5, view: int = 0
) -> NDArray[np.bool_]:
    """Draw which samples are mirrored, each with `probability`.

    Args:
        ids: sample ids `(N,)`, at least 0.
        seed: of the run, at least 0.
        epoch: at least 0.
        probability: in [0, 1].
        view: number of the crop, where one image gives several; at least 0.

    Returns:
        `(N,)`.

    Raises:
        TypeError: what must be integers are none.
        ValueError: a value is out of range.
    """
    samples = _as_counts(ids, "ids", least=0)
    counter = [_as_counter(*pair) for pair in ((seed, "seed"), (epoch, "epoch"), (view, "view"))]
    chance = as_probability(probability, "probability")
    flips: NDArray[np.bool_] = _draw_flips(samples, counter[0], counter[1], chance, counter[2])
    return flips


def as_range(values: tuple[float, float], name: str, most: float = math.inf) -> tuple[float, float]:
    """Return `values` as two floats with `0 < low <= high <= most`, or raise ValueError."""
    given = tuple(values) if isinstance(values, (tuple, list, np.ndarray)) else ()
    low, high = (float(value) for value in given) if len(given) == 2 else (math.nan, math.nan)
    if not 0 < low <= high <= most or math.isinf(high):
        raise ValueError(
            f"`{name}` must be (low, high) with 0 < low <= high <= {most:g}; got {values}. "
            "Pass the smallest and the largest value."
        )
    return low, high


def as_probability(value: float, name: str) -> float:
    """Return `value` as a float in [0, 1], or raise ValueError."""
    if not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` must lie in [0, 1]; got {value}. Pass a probability.")
    return float(value)


def _as_counts(values: ArrayLike, name: str, least: int = 1) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must be integers; got dtype {array.dtype}. Convert them first.")
    if array.ndim != 1 or (array.size and array.min() < least):
        raise ValueError(
            f"`{name}` must have shape (N,) and values >= {least}; got shape {array.shape} and "
            f"{array.min(initial=least)} at the least. Pass one per sample."
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _as_counter(value: int, name: str) -> np.uint64:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an int; got {value!r}. Pass a whole number.")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"`{name}` must lie in [0, 2^64); got {value}. Pass a smaller number.")
    return np.uint64(value)
