"""Array checks of the kernels, whose loops do not check bounds."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_features(features: ArrayLike, name: str = "features") -> NDArray[Any]:
    """Return features `(N, D)` as a contiguous array of float16, float32 or float64."""
    array = np.asarray(features)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"`{name}` must be float16, float32 or float64; got dtype {array.dtype}.")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"`{name}` must have shape (N, D) with D >= 1; got {array.shape}.")
    return np.ascontiguousarray(array)
