"""Array checks of the kernels, whose loops do not check bounds."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int_array, check_ints


def as_labels(labels: ArrayLike, num_classes: int, name: str = "labels") -> NDArray[np.int64]:
    """Return class ids `(N,)` in `[0, num_classes)` as contiguous int64."""
    return check_int_array(name, labels, below=num_classes)


def as_features(features: ArrayLike, name: str = "features") -> NDArray[Any]:
    """Return features `(N, D)` as a contiguous array of float16, float32 or float64."""
    array = np.asarray(features)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"`{name}` must be float16, float32 or float64; got dtype {array.dtype}.")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"`{name}` must have shape (N, D) with D >= 1; got {array.shape}.")
    return np.ascontiguousarray(array)


def as_pixels(image: ArrayLike, name: str, shape: str) -> NDArray[np.uint8]:
    """Return pixels as a contiguous uint8 array.

    Args:
        image: pixels of one plane or of three channels.
        name: argument that errors name.
        shape: "(H, W)" or "(H, W, 3)".
    """
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise TypeError(f"`{name}` must be uint8; got dtype {array.dtype}.")
    channels = (3,) if shape.endswith("3)") else ()
    if array.ndim < 2 or array.shape[2:] != channels or not array.size:
        raise ValueError(f"`{name}` must have shape {shape} and pixels; got {array.shape}.")
    return np.ascontiguousarray(array)


def as_box(box: tuple[int, int, int, int] | None, image: NDArray[Any]) -> tuple[int, int, int, int]:
    """Return a box as ints (top, left, height, width); None is the whole image."""
    rows, columns = image.shape[:2]
    if box is None:
        return 0, 0, rows, columns
    top, left, height, width = check_ints("box", box, 4)
    if not (0 <= top < top + height <= rows and 0 <= left < left + width <= columns):
        raise ValueError(
            f"`box` must be (top, left, height, width) inside {rows} x {columns} pixels; got {box}."
        )
    return top, left, height, width
