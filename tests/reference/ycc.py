"""Twin of `dp4tl_ffcv.kernels.ycc_to_rgb`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ycc_to_rgb(
    luma: ArrayLike,
    blue: ArrayLike,
    red: ArrayLike,
    subsampling: tuple[int, int],
    box: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Upsample both chroma planes, convert the whole image to RGB and cut out the box."""
    y = np.asarray(luma).astype(np.int64)
    b, r = (
        _upsampled(np.asarray(plane).astype(np.int64), *subsampling)[: y.shape[0], : y.shape[1]]
        - 128
        for plane in (blue, red)
    )
    half = 1 << 15  # in units of 2^-16
    channels = (
        y + ((91881 * r + half) >> 16),
        y + ((-22554 * b - 46802 * r + half) >> 16),
        y + ((116130 * b + half) >> 16),
    )
    image = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    top, left, height, width = (0, 0, *y.shape) if box is None else box
    return image[top : top + height, left : left + width]


def _upsampled(plane: NDArray[np.int64], v: int, h: int) -> NDArray[np.int64]:
    """Double columns if h = 2 and rows if v = 2: 3/4 of the nearest and 1/4 of the next pixel."""
    if h == 1:
        return plane
    if plane.shape[1] <= 2:
        return plane.repeat(h, axis=1).repeat(v, axis=0)
    if v == 1:
        padded = np.pad(plane, ((0, 0), (1, 1)), mode="edge")
        return _interleaved(
            (3 * plane + padded[:, :-2] + 1) >> 2, (3 * plane + padded[:, 2:] + 2) >> 2, axis=1
        )
    padded = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
    sums = _interleaved(3 * plane + padded[:-2], 3 * plane + padded[2:], axis=0)
    padded = np.pad(sums, ((0, 0), (1, 1)), mode="edge")
    return _interleaved(
        (3 * sums + padded[:, :-2] + 8) >> 4, (3 * sums + padded[:, 2:] + 7) >> 4, axis=1
    )


def _interleaved(even: NDArray[np.int64], odd: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
    shape = list(even.shape)
    shape[axis] *= 2
    return np.stack((even, odd), axis=axis + 1).reshape(shape)
