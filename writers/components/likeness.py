"""Compare small grey images by their signatures: 16 x 16 pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SIDE = 16  # pixels of a signature
_ALIKE = 8.0  # root mean square difference in grey levels, of 255

Signatures = NDArray[np.float32]
"""(n, 256), integers from 0 to 255: sums of products are exact, in any order."""


def signatures(images: NDArray[np.uint8]) -> Signatures:
    """Return the signatures of grey images (n, height, width)."""
    from PIL import Image

    rows = [
        np.asarray(Image.fromarray(each).resize((_SIDE, _SIDE), Image.Resampling.BOX)).ravel()
        for each in images
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, _SIDE * _SIDE)


def alike(some: Signatures, others: Signatures) -> NDArray[np.bool_]:
    """Return whether images differ by at most 8 of 255 grey levels, root mean square: (n, m)."""
    squared = (
        np.square(some).sum(axis=1)[:, None] + np.square(others).sum(axis=1)
        - 2 * (some @ others.T)
    )  # fmt: skip
    near: NDArray[np.bool_] = squared <= _SIDE * _SIDE * _ALIKE**2
    return near


def in_earlier_class(images: Signatures, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each image is like one of a lower class, (n,)."""
    is_earlier = labels < labels[:, None]
    found: NDArray[np.bool_] = np.any(alike(images, images) & is_earlier, axis=1)
    return found


def distinct(images: Signatures) -> NDArray[np.int64]:
    """Return the positions of the images that are unlike all images chosen before them."""
    chosen = np.empty_like(images)
    positions: list[int] = []
    for position, image in enumerate(images):
        count = len(positions)
        if not alike(image[None], chosen[:count]).any():
            chosen[count] = image
            positions.append(position)
    return np.array(positions, dtype=np.int64)


def resemblance(
    images: Signatures, labels: NDArray[np.int64], groups: NDArray[np.int64], num_groups: int
) -> NDArray[np.float64]:
    """Return how much the images of each group resemble their classes in other groups.

    An image resembles a class by its correlation with the mean of the class's images in other
    groups. The result, (num_groups,), is the fraction of other classes that an image resembles less
    than its own, averaged over the group: the area under the ROC curve, about 0.5 if images have
    nothing to do with their classes. Without images to compare with, it is 1.
    """
    sums = np.zeros((labels.max(initial=-1) + 1, images.shape[1]))
    np.add.at(sums, labels, images)
    counts = np.bincount(labels)
    found = np.ones(num_groups)
    for group in range(num_groups):
        mine = np.flatnonzero(groups == group)
        others = sums.copy()
        np.subtract.at(others, labels[mine], images[mine])
        classes = np.flatnonzero(counts > np.bincount(labels[mine], minlength=len(counts)))
        mine = mine[np.isin(labels[mine], classes)]
        if len(mine) and len(classes) > 1:
            likeness = _centred(images[mine]) @ _centred(others[classes]).T
            own = np.searchsorted(classes, labels[mine])
            less = likeness < likeness[np.arange(len(mine)), own, None]
            found[group] = less.sum(axis=1).mean() / (len(classes) - 1)
    return found


def _centred(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    rows = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
