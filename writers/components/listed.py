"""Samples from a file that lists a dataset's images. Each listed path is checked."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from dp4tl_ffcv import utils

Listing = Sequence[tuple[str, int, int]]  # path relative to the folder, class id, identifier


def image_files(
    folder: Path, splits: Mapping[str, Listing], listing: Path
) -> dict[str, utils.ImageFiles]:
    """Return the samples of each split after checking that every file exists.

    Args:
        folder: folder of the images.
        splits: the images by split.
        listing: file that lists the images, for error messages.

    Raises:
        ValueError: a path leaves the folder, an image is listed twice, or files are missing.
    """
    paths = {split: [_inside(each[0], listing) for each in rows] for split, rows in splits.items()}
    _check_unique(paths, listing)
    found = {split: [os.path.join(folder, path) for path in each] for split, each in paths.items()}  # noqa: PTH118 -- strings, as there may be 100,000
    _check_present([path for each in found.values() for path in each], listing)
    return {
        split: utils.ImageFiles(
            found[split], [label for _, label, _ in rows], identifiers=[i for _, _, i in rows]
        )
        for split, rows in splits.items()
    }


def _inside(path: str, listing: Path) -> str:
    plain = posixpath.normpath(path)
    if not path or plain.startswith("/") or plain.split("/")[0] in ("..", "."):
        raise ValueError(f"{listing} lists {path!r}, which is not inside the folder of the images.")
    return plain


def _check_unique(paths: Mapping[str, Sequence[str]], listing: Path) -> None:
    split_of: dict[str, str] = {}
    for split, each in paths.items():
        for path in each:
            if path in split_of:
                where = f"{split_of[path]} and {split}" if split_of[path] != split else split
                raise ValueError(f"{listing} lists {path!r} twice, in {where}.")
            split_of[path] = split


def _check_present(paths: Sequence[str], listing: Path) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 -- as above
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} images that {listing} lists are missing, such as "
            f"{missing[0]!r}. Extract the dataset's whole archive."
        )
