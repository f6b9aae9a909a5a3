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


def check_fractions(val: float, test: float) -> None:
    """Check the options --val and --test, whose rest is the training split."""
    if not (min(val, test) >= 0 and val + test < 1):
        raise ValueError(
            f"--val and --test must be fractions with a sum below 1; got {val} and {test}."
        )


def split_by_class(
    labels: NDArray[np.int64], val: float, test: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Divide images into train, val and test at random, with equal shares of every class.

    A split without images is left out. If it should have some, this is printed.

    Args:
        labels: class id of each image.
        val: fraction of each class for validation.
        test: fraction of each class for testing.
        seed: seed of the draw.

    Returns:
        Ascending positions by split.
    """
    check_fractions(val, test)
    parts = draw_by_class(labels, lambda count: [round(val * count), round(test * count)], seed)
    splits = dict(zip(("val", "test", "train"), map(np.sort, parts), strict=True))
    shares = {"train": 1 - val - test, "val": val, "test": test}
    for split, share in shares.items():
        if share and not len(splits[split]):
            print(f"{split} is not written: no class has enough images for a share of {share:g}")
    return {split: splits[split] for split in shares if len(splits[split])}
