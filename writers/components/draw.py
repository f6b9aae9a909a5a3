"""Choose images of a dataset: some of its classes, and random ones of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_int

_SHARE = 0.1  # of each class, for validation and for testing, if a dataset has no splits


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
            "--val and --test must be fractions with a sum below 1, such as 0.1 for a tenth; "
            f"got {val:g} and {test:g}."
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


def draw_missing(
    splits: Mapping[str, Any], val: float | None, test: float | None, seed: int
) -> dict[str, Any]:
    """Draw the splits that a dataset lacks from `train`, or from `all` if it has no splits.

    Args:
        splits: samples by split, see `write_splits`.
        val: fraction of each class for validation. None: 0.1 if there are no splits, else 0.
        test: fraction of each class for testing, as for `val`.
        seed: seed of the draw.

    Returns:
        The samples by split: those of `train` or `all` divided, the others unchanged.

    Raises:
        ValueError: a split is to be drawn that exists, or there is nothing to draw it from.
    """
    whole = "all" if "all" in splits else "train"
    usual = _SHARE if whole == "all" else 0.0
    shares = {"val": usual if val is None else val, "test": usual if test is None else test}
    for split, share in shares.items():
        if share and split in splits:
            raise ValueError(f"The dataset has a split {split}. Leave out --{split}.")
    if whole == "train" and not any(shares.values()):
        return dict(splits)
    if whole not in splits:
        raise ValueError("--val and --test are drawn from train, which is not written.")
    samples = splits[whole]
    parts = split_by_class(samples.labels, shares["val"], shares["test"], seed)
    others = {split: each for split, each in splits.items() if split != whole}
    return {split: subset(samples, ids) for split, ids in parts.items()} | others


def choose_classes(
    split: str, samples: Any, class_names: Sequence[str], chosen: Sequence[str]
) -> utils.LazyImages:
    """Return the samples of the classes `chosen`, which are numbered in this order.

    Raises:
        ValueError: no class, or more than one, has one of the names, a name is given twice, or
            there are no images of the classes.
    """
    names = Counter(class_names)
    for name, count in Counter(chosen).items():
        if names[name] != 1 or count != 1:
            shown = ", ".join(map(repr, class_names[:20])) + ", ..." * (len(class_names) > 20)
            raise ValueError(
                f"--classes must name different classes, each once; {names[name]} classes are "
                f"called {name!r}. The classes are {shown}."
            )
    numbers = np.full(len(class_names), -1)
    numbers[[class_names.index(name) for name in chosen]] = np.arange(len(chosen))
    labels = numbers[samples.labels]
    if not (labels >= 0).any():
        raise ValueError(f"The split {split} has no images of {', '.join(chosen)} (--classes).")
    return subset(samples, np.flatnonzero(labels >= 0), labels)


def at_most(samples: Any, count: int, seed: int) -> utils.LazyImages:
    """Return at most `count` samples of each class, drawn at random, in the order of `samples`."""
    check_int("max_per_class", count, at_least=1)
    order = np.argsort(samples.identifiers)  # the draw is the same for any order of samples
    drawn, _ = draw_by_class(samples.labels[order], lambda size: [min(size, count)], seed)
    return subset(samples, np.sort(order[drawn]))


def subset(
    samples: Any, positions: NDArray[np.int64], labels: NDArray[np.int64] | None = None
) -> utils.LazyImages:
    """Return the samples at `positions`, with their identifiers and names.

    Args:
        samples: samples (image, label, identifier), see `write_splits`.
        positions: positions in `samples`.
        labels: other class ids for all `samples`.
    """
    return utils.LazyImages(
        lambda i: samples[int(positions[i])][0],
        (samples.labels if labels is None else labels)[positions],
        samples.identifiers[positions],
        lambda i: samples.name(int(positions[i])),
    )
