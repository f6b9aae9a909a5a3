"""The crops and flips of many samples, drawn by the compiled functions that the decoders use."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dp4tl_ffcv.kernels.crops import draw_crop, draw_flip


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
    """Draw the crop of each sample: top, left, height, width."""
    sizes = zip(*(np.asarray(sides).tolist() for sides in (heights, widths)), strict=True)
    crops = [
        draw_crop(*counters, height, width, scale, ratio)
        for counters, (height, width) in zip(_counters(seed, epoch, ids, view), sizes, strict=True)
    ]
    return np.array(crops, dtype=np.int64)


def random_flips(
    ids: ArrayLike, seed: int, epoch: int, probability: float = 0.5, view: int = 0
) -> NDArray[np.bool_]:
    """Draw which samples are mirrored."""
    counters = _counters(seed, epoch, ids, view)
    return np.array([draw_flip(*counter, float(probability)) for counter in counters], dtype=bool)


def _counters(seed: int, epoch: int, ids: ArrayLike, view: int) -> list[Any]:
    numbers = np.array(ids, dtype=np.uint64)
    return [(np.uint64(seed), np.uint64(epoch), number, np.uint64(view)) for number in numbers]
