"""Samples from a file that lists a dataset's images. Each listed path is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from dp4tl_ffcv import utils

from .files import PathsInside

Listing = Sequence[tuple[str, int, int]]  # path relative to the folder, class id, identifier


def image_files(
    root: Path, folder: Path, splits: Mapping[str, Listing], listing: Path
) -> dict[str, utils.ImageFiles]:
    """Return the samples of each split, whose paths in the file `listing` are below `folder`.

    Raises:
        ValueError: a path leads out of `root` (see `PathsInside`), an image is listed twice, or
            files are missing.
    """
    inside = PathsInside(root, folder)
    split_of: dict[Path, str] = {}
    for split, rows in splits.items():
        for given, _, _ in rows:
            try:
                path = inside.path(given)
            except ValueError as error:
                raise ValueError(f"{listing} lists {given!r}, which {error}.") from error
            if path in split_of:
                where = " and ".join(dict.fromkeys((split_of[path], split)))
                raise ValueError(f"{listing} lists {given!r} twice, in {where}.")
            split_of[path] = split
    missing = [path for path in split_of if not path.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(split_of)} images that {listing} lists are missing, such as "
            f"{str(missing[0])!r}. Extract the dataset's whole archive."
        )
    paths = iter(split_of)
    return {
        split: utils.ImageFiles(
            islice(paths, len(rows)),
            [label for _, label, _ in rows],
            identifiers=[identifier for *_, identifier in rows],
        )
        for split, rows in splits.items()
    }
