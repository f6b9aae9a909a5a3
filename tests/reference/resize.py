"""Twin of `dp4tl_ffcv.kernels.resize_area`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def resize_area(
    image: ArrayLike,
    size: tuple[int, int],
    box: tuple[int, int, int, int] | None = None,
    mirrored: bool = False,
) -> NDArray[np.uint8]:
    """Compute `result[i, j] = floor(sum_yx down[i, y] across[j, x] crop[y, x] + 1/2)`.

    With `scale = length / size` of an axis: if no axis has a scale below 1, `weights[d, s]` is the
    part of `[d scale, (d + 1) scale]` inside `[s, s + 1]`, divided by the scale. Otherwise
    `weights[d, s] = 1 - f` and `weights[d, s + 1] = f` on both axes, with `s = floor(d scale)` and
    `f = frac(max(0, d + 1 - (s + 1) / scale))`. The last pixel has all weight beyond the edge.
    """
    pixels = np.asarray(image, dtype=np.float64)
    top, left, height, width = (0, 0, *pixels.shape[:2]) if box is None else box
    crop = pixels[top : top + height, left : left + width]
    weigh = _between_two if height < size[0] or width < size[1] else _covered
    down, across = weigh(height, size[0]), weigh(width, size[1])
    levels = np.einsum("iy,yxc,jx->ijc", down, crop, across, optimize=True)
    result = np.floor(levels + 0.5).astype(np.uint8)
    return np.ascontiguousarray(result[:, ::-1]) if mirrored else result


def _covered(length: int, size: int) -> NDArray[np.float64]:
    edges, scale = np.arange(size + 1) * (length / size), length / size
    places = np.arange(length)
    starts = np.maximum(edges[:-1, None], places)
    stops = np.minimum(edges[1:, None], places + 1)
    return np.maximum(stops - starts, 0.0) / scale


def _between_two(length: int, size: int) -> NDArray[np.float64]:
    weights = np.zeros((size, length + 1))
    inverse = size / length
    for place in range(size):
        first = int(np.floor(place * (1.0 / inverse)))
        # As in OpenCV, float32 decides what is a whole number.
        fraction = float(np.float32((place + 1) - (first + 1) * inverse))
        fraction = max(fraction, 0.0) % 1.0
        if first >= length - 1:
            first, fraction = length - 1, 0.0
        weights[place, first] = 1.0 - fraction
        weights[place, first + 1] = fraction
    return weights[:, :length]
