"""Draw images of each class at random, for splits."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_by_class(
    labels: NDArray[Any], sizes: Callable[[int], Sequence[int]], seed: int
) -> list[NDArray[np.int64]]:
    """Divide the positions of `labels` into random groups of fixed sizes per class.

    Args:
        labels: class id of each image.
        sizes: returns the sizes of the groups, given the number of images of a class.
        seed: seed of the draw.

    Returns:
        Positions in each group, class by class. The last group has the images left over.
    """
    rng = np.random.default_rng(seed)
    classes = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        classes.append(np.split(members, np.cumsum(sizes(len(members)))))
    return [np.concatenate(group) for group in zip(*classes, strict=True)]
