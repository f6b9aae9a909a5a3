"""Write betons from a folder of images: `ROOT/CLASS/*.jpg` or `ROOT/SPLIT/CLASS/*.jpg`.

If ROOT (--root) has folders called train, val or test, they become the splits. Otherwise --val and
--test split the images of each class at random. Class ids follow the sorted class names and are the
same in all splits. The identifier of an image is its position in the sorted listing of its folder:
ROOT, or ROOT/SPLIT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import SPLITS, Options, check_no_stale, run, write_splits
from .components.draw import draw_by_class
from .components.files import IMAGE_SUFFIXES, folders_of, images_by_class


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
    return write_splits("imagefolder", splits, class_names, config)


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
        print(f"ignored {len(ignored)} other files and links to folders, such as {ignored[0]}")
    if not any(paths for paths, _ in listings):
        raise ValueError(
            f"No images in the class folders of {str(root)!r}. "
            f"Known suffixes: {', '.join(IMAGE_SUFFIXES)}."
        )
    if present:
        samples = [utils.ImageFiles(*listing) for listing in listings]
    else:
        samples = _split(*listings[0], config)
    splits = zip(present or SPLITS, samples, strict=True)
    return {split: images for split, images in splits if len(images)}, class_names


def _split(paths: list[str], labels: NDArray[np.int64], config: Config) -> list[utils.ImageFiles]:
    fractions = (config.val, config.test)
    if not (min(fractions) >= 0 and sum(fractions) < 1):
        raise ValueError(
            "--val and --test must be fractions with a sum below 1; "
            f"got {config.val} and {config.test}."
        )
    val, test, train = map(
        np.sort,
        draw_by_class(labels, lambda count: [round(x * count) for x in fractions], config.seed),
    )
    return [
        utils.ImageFiles([paths[i] for i in ids], labels[ids], identifiers=ids)
        for ids in (train, val, test)
    ]


if __name__ == "__main__":
    run(__name__)
