"""Write betons from a folder of images: `ROOT/CLASS/*.jpg` or `ROOT/SPLIT/CLASS/*.jpg`.

If ROOT has folders called train, val or test, they become the splits. Otherwise --val and --test
split the images of each class at random. Class ids follow the sorted class names and are the same
in all splits. The identifier of an image is its position in the sorted listing of its folder: ROOT,
or ROOT/SPLIT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import Options, check_no_stale, run, say, write_splits
from .components.files import IMAGE_SUFFIXES, folders_of, images_by_class

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Options of the writer."""

    root: Path
    """Folder of class folders, or of train, val and test."""
    val: float = 0.1
    """Fraction of each class for validation, if ROOT is not split."""
    test: float = 0.1
    """Fraction of each class for testing, if ROOT is not split."""
    seed: int = 0
    """Seed of the split and of the order of samples in the files."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write each split that has images and return its index."""
    splits, class_names = list_images(config)
    check_no_stale(config.out, [split for split in SPLITS if split not in splits])
    return write_splits("imagefolder", splits, class_names, config, None)


def list_images(config: Config) -> tuple[dict[str, utils.ImageFiles], list[str]]:
    """Return the samples of each split that has images, and the class names."""
    root = config.root
    if not root.is_dir():
        raise ValueError(f"--root is not a folder: {str(root)!r}.")
    present = [split for split in SPLITS if (root / split).is_dir()]
    others = [name for name in folders_of(root) if name not in SPLITS]
    if present and others:
        raise ValueError(
            f"{str(root)!r} has both splits ({', '.join(present)}) and other folders, such as "
            f"{others[0]!r}. Move the classes into the splits, or rename the splits."
        )
    roots = [root / split for split in present] or [root]
    class_names = sorted({name for each in roots for name in folders_of(each)})
    class_ids = {name: label for label, name in enumerate(class_names)}
    ignored: list[str] = []
    listings = []
    for each in roots:
        paths, names = images_by_class(each, ignored)
        listings.append((paths, np.array([class_ids[name] for name in names], dtype=np.int64)))
    if ignored:
        say(f"ignored {len(ignored)} other files and links to folders, such as {ignored[0]}")
    if not any(paths for paths, _ in listings):
        raise ValueError(
            f"No images in the class folders of {str(root)!r}. "
            f"Known suffixes: {', '.join(IMAGE_SUFFIXES)}."
        )
    if present:
        splits = {
            split: utils.ImageFiles(*listing)
            for split, listing in zip(present, listings, strict=True)
        }
    else:
        ((paths, labels),) = listings
        splits = {
            split: utils.ImageFiles([paths[i] for i in ids.tolist()], labels[ids], identifiers=ids)
            for split, ids in _split(labels, len(class_names), config).items()
        }
    return {split: samples for split, samples in splits.items() if len(samples)}, class_names


def _split(
    labels: NDArray[np.int64], num_classes: int, config: Config
) -> dict[str, NDArray[np.int64]]:
    if not (config.val >= 0 and config.test >= 0 and config.val + config.test < 1):
        raise ValueError(
            "--val and --test must be fractions with a sum below 1; "
            f"got {config.val} and {config.test}."
        )
    parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    rng = np.random.default_rng(config.seed)
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        num_val, num_test = (round(each * len(members)) for each in (config.val, config.test))
        parts["val"].append(np.sort(members[:num_val]))
        parts["test"].append(np.sort(members[num_val : num_val + num_test]))
        parts["train"].append(np.sort(members[num_val + num_test :]))
    return {split: np.concatenate(members) for split, members in parts.items()}


if __name__ == "__main__":
    run(__name__)
