"""Write betons from a folder of images: `ROOT/CLASS/*.jpg` or `ROOT/SPLIT/CLASS/*.jpg`.

If ROOT (--root) has folders called train, val or test, they become the splits; names such as
Training, valid, dev or test_set are understood. --val and --test draw splits that ROOT lacks from
each class, of train or of all images. Class ids follow the sorted class names and are the same in
all splits. The identifier of an image is its position in the sorted listing of its folder: ROOT, or
ROOT/SPLIT.

Images of a class may lie in folders below CLASS, such as CLASS/images. If CLASS may rather be a
dataset or a split, with class folders in it, it is refused unless you pass --nested-classes: it has
several folders and no image of its own, or a folder below it is called like a split. Links to files
and to class folders are followed, wherever they lead. Of an animated GIF, the first image is
written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import scandir
from os.path import commonpath
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import SPLITS, SplitOptions, check_no_stale, run, write_splits
from .components.draw import draw_missing
from .components.files import IMAGE_SUFFIXES, folders_of, images_by_class, split_of, tell_ignored

Listing = tuple[list[str], list[str]]  # path and class name of each image


@dataclass(frozen=True, kw_only=True)
class Config(SplitOptions):
    """Options of the writer."""

    root: Path
    """Folder of class folders, or of train, val and test."""
    nested_classes: bool = False
    """All images in folders below a class folder are of this class, whatever the folders' names."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write each split that has images and return its index."""
    splits, class_names = list_images(config)
    check_no_stale(config.out, [split for split in SPLITS if split not in splits])
    return write_splits("imagefolder", splits, class_names, config)


def list_images(config: Config) -> tuple[dict[str, Any], list[str]]:
    """Return the samples of each split that has images, and the class names."""
    root = config.root
    if not root.is_dir():
        raise ValueError(f"--root is not a folder: {str(root)!r}.")
    folders = _splits_of(root)
    roots = folders or {"all": root}
    ignored: list[str] = []
    listings = {split: _list(each, ignored) for split, each in roots.items()}
    tell_ignored(ignored)
    if not any(paths for paths, _ in listings.values()):
        found = Counter(Path(path).suffix.lower() or "none" for path in ignored).most_common(5)
        shown = ", ".join(f"{count} {suffix}" for suffix, count in found)
        raise ValueError(
            f"No images in the class folders of {str(root)!r}. "
            f"Known suffixes: {', '.join(IMAGE_SUFFIXES)}. Files there: {shown or 'none'}."
        )
    for split, (paths, names) in listings.items():
        if not config.nested_classes:
            _check_are_classes(roots[split], paths, names)
    class_names = _class_names(roots)
    numbers = {name: label for label, name in enumerate(class_names)}
    labels = {
        split: np.array([numbers[name] for name in names], dtype=np.int64)
        for split, (_, names) in listings.items()
    }
    _check_classes_agree(listings)
    for split in folders:
        if not len(labels[split]):
            print(f"{split} is not written: {str(roots[split])!r} has no images in class folders")
    splits = {
        split: utils.ImageFiles(paths, labels[split])
        for split, (paths, _) in listings.items()
        if paths
    }
    return draw_missing(splits, config.val, config.test, config.seed), class_names


def _splits_of(root: Path) -> dict[str, Path]:
    """Return the folders of the splits, in the order of `SPLITS`; none if there are classes."""
    named: dict[str, list[str]] = {}
    for name in folders_of(root):
        named.setdefault(split_of(name) or "", []).append(name)
    others = named.pop("", [])
    first = {split: names[0] for split, names in named.items()}
    if named and others:
        raise ValueError(
            f"{str(root)!r} has both splits ({', '.join(first.values())}) and other folders, such "
            f"as {others[0]!r}. If {others[0]!r} is a class, move it into the splits, else move it "
            f"out of --root. If {next(iter(first.values()))!r} is a class, rename its folder."
        )
    for split, names in named.items():
        if len(names) > 1:
            raise ValueError(
                f"{str(root)!r} has two folders for the split {split}: {names[0]!r} and "
                f"{names[1]!r}. Leave one of them there."
            )
    return {split: root / first[split] for split in SPLITS if split in first}


def _list(root: Path, ignored: list[str]) -> Listing:
    with scandir(root) as entries:
        loose = sorted(e.path for e in entries if e.name[0] != "." and not e.is_dir())
    ignored += loose
    return images_by_class(root, ignored)


def _check_are_classes(root: Path, paths: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError if a folder in `root` may hold class folders, instead of being one."""
    below: dict[str, set[str]] = {}
    for path, name in zip(paths, names, strict=True):
        folder = path[len(f"{root / name}/") :].rpartition("/")[0]
        below.setdefault(name, set()).add(folder)
    for name, folders in below.items():
        split = next(
            (part for each in sorted(folders) for part in each.split("/") if split_of(part)), ""
        )
        # No images of its own, but several folders. A chain is one folder: n01440764/images/*.JPEG.
        is_group = commonpath(folders) not in folders
        if split or is_group:
            raise ValueError(
                f"{str(root / name)!r} holds the folder {(split or min(folders))!r}, so it may be "
                "a dataset, a split or a group of classes instead of a class. --root must hold "
                "CLASS/*.jpg, or SPLIT/CLASS/*.jpg with splits called train, val and test: pass "
                "the folder that does, or move or rename the folders. If all images below "
                f"{name!r} are of one class, pass --nested-classes."
            )
    nested = next((name for name, folders in below.items() if folders != {""}), None)
    if nested is not None:
        print(f"images in folders below {str(root / nested)!r} are of the class {nested!r}")


def _class_names(roots: Mapping[str, Path]) -> list[str]:
    names = sorted({name for each in roots.values() for name in folders_of(each)})
    forms: dict[str, str] = {}
    for name in names:
        other = forms.setdefault(normalize("NFC", name), name)
        if other != name:
            raise ValueError(
                f"Two class folders are called {name!r}, in different Unicode forms (NFC and NFD). "
                "Rename one of them, or merge them."
            )
    return names


def _check_classes_agree(listings: Mapping[str, Listing]) -> None:
    """Check that splits have classes of train. Print how many classes of a split train lacks."""
    known = set(listings["train"][1]) if "train" in listings else set()
    for split, (_, names) in listings.items():
        missing = sorted(set(names) - known) if known else []
        if missing and len(missing) == len(set(names)):
            raise ValueError(
                f"None of the class folders of {split}, such as {missing[0]!r}, is a class of "
                f"train. Sort the images of {split} into class folders of the same names."
            )
        if missing:
            print(f"{len(missing)} classes of {split} are not in train, such as {missing[0]!r}")


if __name__ == "__main__":
    run(__name__)
