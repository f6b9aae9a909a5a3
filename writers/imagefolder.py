"""Write betons from a folder of images: `ROOT/CLASS/*.jpg` or `ROOT/SPLIT/CLASS/*.jpg`.

A root whose sub-folders are called train, val and test is taken as already split. Otherwise the
images of each class are split at random by `--val` and `--test`. Classes are numbered in the order
of their names, and every split uses the same numbers. The identifier of an image is its position
in the sorted listing of its root.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import ImageFiles

from .components.common import Options, check_no_others, run, say, write_splits
from .components.files import IMAGE_SUFFIXES, folders_of, images_below

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    root: Path
    """Folder of class folders, or of train, val and test."""
    val: float = 0.1
    """Share of each class for validation, where the root is not split."""
    test: float = 0.1
    """Share of each class for the test, where the root is not split."""
    seed: int = 0
    """Of the split, and of the order of samples in the files."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each split that has images."""
    splits, class_names = list_images(config)
    check_no_others(config.out, [split for split in SPLITS if split not in splits])
    return write_splits("imagefolder", splits, class_names, config, None)


def list_images(config: Config) -> tuple[dict[str, ImageFiles], list[str]]:
    """Return the samples of each split that has any, and the class names."""
    if not config.root.is_dir():
        raise ValueError(f"`root` must be a folder; got {str(config.root)!r}. Check the path.")
    present = [split for split in SPLITS if (config.root / split).is_dir()]
    others = [name for name in folders_of(config.root) if name not in SPLITS]
    if present and others:
        raise ValueError(
            f"`root` must hold either splits or classes; got {', '.join(present)} beside "
            f"{others[0]!r} in {str(config.root)!r}. Move the classes into the splits, or rename."
        )
    roots = [config.root / split for split in present] or [config.root]
    class_names = sorted({name for root in roots for name in folders_of(root)})
    passed: list[str] = []
    listings = [_list(root, class_names, passed) for root in roots]
    if passed:
        say(f"passed over (no images, or links to folders): {len(passed)}, such as {passed[0]}")
    if not any(labels.size for _, labels in listings):
        raise ValueError(
            f"`root` must hold class folders with images; got none in {str(config.root)!r}. "
            f"Known suffixes: {', '.join(IMAGE_SUFFIXES)}."
        )
    if present:
        splits = {
            split: ImageFiles(paths, labels)
            for split, (paths, labels) in zip(present, listings, strict=True)
        }
    else:
        ((paths, labels),) = listings
        splits = {
            split: ImageFiles([paths[i] for i in ids.tolist()], labels[ids], identifiers=ids)
            for split, ids in _split(labels, len(class_names), config).items()
        }
    return {split: samples for split, samples in splits.items() if len(samples)}, class_names


def _list(
    root: Path, class_names: Iterable[str], passed: list[str]
) -> tuple[list[str], NDArray[np.int64]]:
    paths: list[str] = []
    counts = []
    for name in class_names:
        found = images_below(root / name, passed) if (root / name).is_dir() else []
        paths += found
        counts.append(len(found))
    return paths, np.repeat(np.arange(len(counts)), counts)


def _split(
    labels: NDArray[np.int64], num_classes: int, config: Config
) -> dict[str, NDArray[np.int64]]:
    if not (0 <= config.val < 1 and 0 <= config.test < 1 and config.val + config.test < 1):
        raise ValueError(
            f"`val` and `test` must be shares with a sum below 1; got {config.val} and "
            f"{config.test}. Leave some images for training."
        )
    parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    rng = np.random.default_rng(config.seed)
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        num_val, num_test = (round(share * len(members)) for share in (config.val, config.test))
        parts["val"].append(np.sort(members[:num_val]))
        parts["test"].append(np.sort(members[num_val : num_val + num_test]))
        parts["train"].append(np.sort(members[num_val + num_test :]))
    return {split: np.concatenate(members) for split, members in parts.items()}


if __name__ == "__main__":
    run("imagefolder", Config, write, __doc__)
