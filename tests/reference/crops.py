"""Twins of `draw_crop` and `draw_flip` in `dp4tl_ffcv.kernels.crops`, for many samples."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_TRIES = 10


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
    """Draw four numbers per try, and take the largest centred crop if ten tries do not fit."""
    sizes = zip(*(np.asarray(values).tolist() for values in (heights, widths, ids)), strict=True)
    boxes = [
        _crop(height, width, _key(seed, epoch, sample, view), scale, ratio)
        for height, width, sample in sizes
    ]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def random_flips(
    ids: ArrayLike, seed: int, epoch: int, probability: float = 0.5, view: int = 0
) -> NDArray[np.bool_]:
    """Compare the draw after those of all ten tries with the probability."""
    draws = [
        _uniform(_key(seed, epoch, sample, view), 4 * _TRIES) for sample in np.asarray(ids).tolist()
    ]
    return np.array(draws, dtype=np.float64) < probability


def _crop(
    height: int, width: int, key: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    for attempt in range(_TRIES):
        share, log_aspect, down, right = (_uniform(key, 4 * attempt + draw) for draw in range(4))
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        low, high = (float(np.log(bound)) for bound in ratio)
        aspect = float(np.exp(low + (high - low) * log_aspect))
        columns, rows = (round(float(np.sqrt(x))) for x in (area * aspect, area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            return top, left, rows, columns
    rows, columns = height, width
    if width < ratio[0] * height:  # too narrow
        rows = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:  # too wide
        columns = max(1, round(height * ratio[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _key(seed: int, epoch: int, sample: int, view: int) -> int:
    key = _mix(seed + _GAMMA)
    for count in (epoch, sample, view):
        key = _mix(key + count)
    return key


def _uniform(key: int, draw: int) -> float:
    """Return draw number `draw`, in [0, 1) with 53 bits."""
    return float(_mix(key + draw * _GAMMA) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    """Apply the output function of SplitMix64."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
