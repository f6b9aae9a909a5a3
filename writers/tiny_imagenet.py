"""Write betons of Tiny-ImageNet-200 from its archive's layout: train, val and, if asked for, test.

ROOT (--root) is the folder inside tiny-imagenet-200.zip from cs231n.stanford.edu:

    tiny-imagenet-200/
        wnids.txt                            the 200 WNIDs
        words.txt                            WNID, tab, names
        train/n01443537/images/*.JPEG        500 images per class
        val/images/*.JPEG                    50 images per class
        val/val_annotations.txt              file, tab, WNID, tab, box

The archive's test images have no labels, and are not read. --test 0.1 draws a test split from
train: 50 of the 500 images of a class. Class ids follow the sorted WNIDs, and class names are the
words. Images have 64 x 64 pixels. The identifier of an image is its position in the sorted listing
of train or of val.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import (
    CountedOptions,
    SplitOptions,
    check_counts,
    drawn_splits,
    run,
    write_splits,
)
from .components.files import find, images_below, images_by_class, tell_ignored

EXPECTED = (200, {"train": 100_000, "val": 10_000})
_LAYOUT = "wnids.txt, words.txt, train and val, as in tiny-imagenet-200.zip"


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions, SplitOptions):
    """Options of the writer."""

    root: Path
    """Folder of wnids.txt, train and val."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write train, val and, with `config.test`, test; return the index of each."""
    root = config.root
    wnids = sorted(_lines(root, "wnids.txt"))
    ids = {wnid: label for label, wnid in enumerate(wnids)}
    ignored: list[str] = []
    listings = {
        "train": images_by_class(find(root, "train", layout=_LAYOUT), ignored),
        "val": _list_val(root, ignored),
    }
    tell_ignored(ignored)
    splits: dict[str, Any] = {}
    for split, (paths, of_each) in listings.items():
        if unknown := sorted(set(of_each) - ids.keys()):
            raise ValueError(f"{split} has images of {unknown[0]!r}, which wnids.txt lacks.")
        splits[split] = utils.ImageFiles(paths, [ids[wnid] for wnid in of_each])
    names = _class_names(root, wnids)
    check_counts(splits, names, EXPECTED, config)
    return write_splits("tiny_imagenet", drawn_splits(splits, config), names, config)


def _list_val(root: Path, ignored: list[str]) -> tuple[list[str], list[str]]:
    """Return the paths of the validation images, and the WNID of each."""
    annotations = {}
    for line in _lines(root, "val/val_annotations.txt"):
        file, _, rest = line.partition("\t")
        annotations[file] = rest.partition("\t")[0]
    paths = images_below(find(root, "val/images", layout=_LAYOUT), ignored)
    found = [Path(path).name for path in paths]
    if odd := sorted(annotations.keys() ^ set(found)):
        raise ValueError(
            f"{len(odd)} images are either in val/images or in val_annotations.txt, but not in "
            f"both, such as {odd[0]!r}. Extract the archive again."
        )
    return paths, [annotations[name] for name in found]


def _class_names(root: Path, wnids: list[str]) -> list[str]:
    """Name the classes, with the WNID added to a name that two classes have."""
    words = dict(line.split("\t", 1) for line in _lines(root, "words.txt") if "\t" in line)
    names = [words.get(wnid, wnid) for wnid in wnids]
    times = Counter(names)
    return [
        f"{name} ({wnid})" if times[name] > 1 else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def _lines(root: Path, name: str) -> list[str]:
    path = find(root, name, layout=_LAYOUT)
    try:
        text = utils.read_text(path)
    except ValueError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}. Extract it again.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


if __name__ == "__main__":
    run(__name__)
