"""Images that a dataset's own listing names: each inside its folder, present, and named once."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from dp4tl_ffcv.utils import ImageFiles

Listing = Sequence[tuple[str, int, int]]  # path relative to the folder, class id, identifier


def image_files(
    folder: Path, splits: Mapping[str, Listing], listing: Path
) -> dict[str, ImageFiles]:
    """Return the samples of each split, after a look whether each file is there.

    Args:
        folder: what the paths are relative to.
        splits: the images by split.
        listing: the file that names them, for messages.

    Raises:
        ValueError: a path that leaves the folder, an image that is named twice, in one split or in
            two, or files that are missing.
    """
    paths = {split: [_inside(each[0], listing) for each in rows] for split, rows in splits.items()}
    _check_once(paths, listing)
    found = {split: [os.path.join(folder, path) for path in each] for split, each in paths.items()}  # noqa: PTH118 -- strings, as there may be 100,000
    _check_present([path for each in found.values() for path in each], listing)
    return {
        split: ImageFiles(
            found[split], [label for _, label, _ in rows], identifiers=[i for _, _, i in rows]
        )
        for split, rows in splits.items()
    }


def _inside(path: str, listing: Path) -> str:
    plain = posixpath.normpath(path)
    if not path or plain.startswith("/") or plain.split("/")[0] in ("..", "."):
        raise ValueError(
            f"`{listing}` must name images by paths inside their folder; got {path!r}. "
            "Take the dataset's own file."
        )
    return plain


def _check_once(paths: Mapping[str, Sequence[str]], listing: Path) -> None:
    split_of: dict[str, str] = {}
    for split, each in paths.items():
        for path in each:
            if path in split_of:
                where = f"{split_of[path]} and {split}" if split_of[path] != split else split
                raise ValueError(
                    f"`{listing}` must name each image once; got {path!r} twice, in {where}. "
                    "Take the dataset's own file."
                )
            split_of[path] = split


def _check_present(paths: Sequence[str], listing: Path) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 -- as above
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(
            f"`root` must hold the images that {listing.name!r} names; got no "
            f"{missing[0]!r}{others}, of {len(paths)}. Extract the dataset's archive there, whole."
        )
