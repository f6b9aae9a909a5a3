"""Find the images of a dataset's folder, by suffix and without hidden files."""

import os
from pathlib import Path

IMAGE_SUFFIXES = (
    ".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def find(root: Path, *names: str, layout: str) -> Path:
    """Return the first `root/name` that exists, else raise ValueError.

    `layout` says what `root`, the folder of the dataset, must hold.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    where = f"No {' or '.join(map(repr, names))} in" if root.is_dir() else "There is no folder"
    raise ValueError(f"{where} {str(root)!r}. --root must hold {layout}.")


def folders_of(root: Path) -> list[str]:
    """Return the sorted names of the folders in `root`, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(each.name for each in entries if each.name[0] != "." and each.is_dir())


def images_below(folder: str | Path, others: list[str] | None = None) -> list[str]:
    """Return the sorted paths of all image files below `folder`, without hidden ones.

    Paths are strings, because a dataset may have a million files. `others` receives the paths of
    ignored entries: other files, and links to folders.
    """
    images = []
    with os.scandir(os.fspath(folder)) as entries:
        visible = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    for each in visible:
        if each.is_dir(follow_symlinks=False):
            images += images_below(each.path, others)
        elif each.name.lower().endswith(IMAGE_SUFFIXES) and not each.is_dir():
            images.append(each.path)
        elif others is not None:  # includes links to folders, which may lead back up
            others.append(each.path)
    return images


def images_by_class(root: Path, others: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the paths of the images in the class folders of `root`, and the class of each."""
    found = {name: images_below(root / name, others) for name in folders_of(root)}
    paths = [path for each in found.values() for path in each]
    return paths, [name for name, each in found.items() for _ in each]


def is_hidden(name: str) -> bool:
    """Return whether a part of a path is hidden, as AppleDouble files `._NAME` are."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
