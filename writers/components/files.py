"""What writers find in the folder of a dataset: its images, by suffix and without hidden ones."""

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    ".bmp",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


def find(root: Path, *names: str, layout: str) -> Path:
    """Return the first `root/name` that exists.

    Args:
        root: folder of the dataset.
        names: what is looked for, each a path below `root`; "." is `root` itself.
        layout: what `root` should hold, ending the sentence "`root` must hold ...".

    Raises:
        ValueError: there is none of them.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    looked_for = " or ".join(map(repr, names))
    where = f"in {str(root)!r}" if root.is_dir() else f"as {str(root)!r} is no folder"
    raise ValueError(f"`root` must hold {layout}; got no {looked_for} {where}. Check the path.")


def folders_of(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(each.name for each in entries if each.name[0] != "." and each.is_dir())


def images_below(folder: Path, others: list[str] | None = None) -> list[str]:
    """Return the paths of all image files below `folder`, sorted, without hidden ones.

    Args:
        folder: where to look.
        others: gets the paths of what is passed over: other files and links to folders.
    """
    return list(_walk(os.fspath(folder), [] if others is None else others))


def is_hidden(name: str) -> bool:
    """Say whether a file or folder of a path is hidden, as AppleDouble files `._NAME` are."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _walk(folder: str, others: list[str]) -> Iterator[str]:
    """Yield strings, not `Path`: a dataset may have a million files."""
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    for each in visible:
        if each.is_dir(follow_symlinks=False):
            yield from _walk(each.path, others)
        elif each.name.lower().endswith(IMAGE_SUFFIXES) and not each.is_dir():
            yield each.path
        else:  # a link to a folder may lead back up
            others.append(each.path)
