"""Random crops that depend only on the seed, the epoch and the sample, not on draw order.

Every draw is a hash of a counter: `key = mix(mix(mix(mix(seed) + epoch) + sample) + view)` and
`u_i = mix(key + i * gamma) / 2^64`, with the output function `mix` and the increment gamma of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import math
from typing import Any

import numpy as np

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
    """Draw the random resized crop of a sample (Szegedy et al., arXiv 1409.4842).

    Up to ten tries draw an area H W u, with u uniform in `scale`, and an aspect ratio whose
    logarithm is uniform in `ratio` (width / height). The first crop that fits into the image is
    placed uniformly. If no crop fits, the result is the largest centred crop of an allowed aspect
    ratio. The counters are uint64; `view` numbers the crops of one image.

    Returns top, left, height and width in pixels. Nothing is checked.
    """
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
    """Draw whether a sample is mirrored."""
    return _uniform(_key(seed, epoch, sample, view), _FLIP_DRAW, 0.0, 1.0) < probability
