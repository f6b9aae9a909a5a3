"""Write betons of ImageNet (ILSVRC2012), train and val, from folders or the official archives.

ROOT (--root) holds the archives from image-net.org (free, after registration), not extracted:

    ILSVRC2012_img_train.tar        a tar of 1,000 tars, WNID.tar
    ILSVRC2012_img_val.tar          ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG
    ILSVRC2012_devkit_t12.tar.gz    labels of val, and class names

or folders, which are used instead of the archive if both exist:

    train/WNID/*.JPEG
    val/WNID/*.JPEG, or val/ILSVRC2012_val_*.JPEG with the devkit
    ILSVRC2012_devkit_t12/data/meta.mat, ILSVRC2012_validation_ground_truth.txt

Class ids follow the sorted WNIDs, as in torchvision. Class names come from the devkit (this needs
scipy), or are the WNIDs if there is none. The identifier of an image is its position in its split,
which is sorted by WNID and file name, or by file name if val has no folders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from sys import intern
from typing import Any, Literal

import numpy as np

import dp4tl_ffcv
from dp4tl_ffcv import utils

from .components.common import CountedOptions, run, write_splits
from .components.files import (
    IMAGE_SUFFIXES,
    find,
    folders_of,
    images_below,
    images_by_class,
    is_hidden,
    read_members,
    tell_ignored,
)

EXPECTED = (1000, {"train": 1_281_167, "val": 50_000})
DEVKIT = "ILSVRC2012_devkit_t12"
_LARGEST_FILE = 1 << 20  # bytes of a file in the devkit, where the largest has 200 kB
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
LAYOUTS = {
    "train": "train/WNID/*.JPEG or ILSVRC2012_img_train.tar",
    "val": "val/WNID/*.JPEG, val/*.JPEG or ILSVRC2012_img_val.tar",
}


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions):
    """Options of the writer."""

    root: Path
    """Folder of the archives, or of train and val."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    """Splits to write."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write the chosen splits and return the index of each."""
    names, truth = read_devkit(config.root)
    listings = {split: _list(config.root, split, truth) for split in config.splits}
    wnids = sorted({wnid for _, of_each in listings.values() for wnid in of_each})
    if wrong := [wnid for wnid in wnids if not re.fullmatch(r"n\d{8}", wnid)]:
        raise ValueError(
            f"{wrong[0]!r} in {str(config.root)!r} is not a class of ImageNet: their folders are "
            "called by WNIDs, such as n01440764. Use `dp4tl write imagefolder` for other names."
        )
    ids = {wnid: label for label, wnid in enumerate(wnids)}
    splits: dict[str, Any] = {}
    for split, (images, of_each) in listings.items():
        samples: Any = utils.ImageFiles if isinstance(images, list) else utils.TarImages
        splits[split] = samples(images, [ids[wnid] for wnid in of_each])
    return write_splits("imagenet", splits, _class_names(wnids, names), config, EXPECTED)


def read_devkit(root: Path) -> tuple[dict[str, str], list[str]]:
    """Return class names by WNID and the WNIDs of val; both are empty if there is no devkit."""
    folder, archive = root / DEVKIT, root / f"{DEVKIT}.tar.gz"
    if not folder.is_dir() and not archive.is_file():
        return {}, []
    with utils.requires("scipy", "reading the devkit"):
        from scipy.io import loadmat
    try:
        if folder.is_dir():
            meta, truth = (
                _content(find(folder, name, layout="the extracted devkit"))
                for name in (META, TRUTH)
            )
        else:
            wanted = [f"{DEVKIT}/{name}" for name in (META, TRUTH)]
            files = read_members(archive, wanted, largest=_LARGEST_FILE)
            meta, truth = (files[name] for name in wanted)
        synsets = np.atleast_1d(loadmat(BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
        names = {str(each["WNID"]): str(each["words"]) for each in synsets}
        return names, [wnids[int(number)] for number in truth.split()]
    except MemoryError:
        raise
    except Exception as error:  # scipy raises errors of many types for damaged files
        raise ValueError(
            f"The devkit in {str(root)!r} is damaged or lacks {META} or {TRUTH}: {error}. "
            f"Download {DEVKIT}.tar.gz again."
        ) from error


def _content(path: Path) -> bytes:
    with utils.open_file(path) as stream:
        content = stream.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:  # it may be compressed to a thousandth
        raise ValueError(f"{path.name} has more than {_LARGEST_FILE} bytes")
    return content


def _list(
    root: Path, split: str, truth: Sequence[str]
) -> tuple[list[str] | utils.TarMembers, list[str]]:
    place = find(root, split, f"ILSVRC2012_img_{split}.tar", layout=LAYOUTS[split])
    if not place.is_dir():
        return _list_archive(place, split, truth)
    ignored: list[str] = []
    if split == "val" and not folders_of(place):
        paths = images_below(place, ignored)
        found = paths, _truth_of(paths, truth)
    else:
        found = images_by_class(place, ignored)
    tell_ignored(ignored)
    return found


def _list_archive(
    path: Path, split: str, truth: Sequence[str]
) -> tuple[utils.TarMembers, list[str]]:
    members = utils.list_tar(path, nested=split == "train")
    found = sorted((name, i) for i, name in enumerate(members.names))
    found = [(n, i) for n, i in found if n.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(n)]
    names = [name for name, _ in found]
    wnids = _truth_of(names, truth) if split == "val" else [_wnid_of(path, n) for n in names]
    return members.chosen([i for _, i in found]), wnids


def _wnid_of(archive: Path, name: str) -> str:
    inner, slash, _ = name.rpartition("/")
    if not slash:
        raise ValueError(
            f"{archive} has the image {name!r} at its top level, but the training archive is a tar "
            "of 1,000 tars, one per class. Use the archive of the training images."
        )
    return intern(inner.rpartition("/")[2].removesuffix(".tar"))


def _truth_of(names: Sequence[str], truth: Sequence[str]) -> list[str]:
    """Return the WNIDs of validation images, whose file names count from 1."""
    if not truth:
        raise ValueError(
            f"The labels of val are missing. Put {DEVKIT}.tar.gz from image-net.org into --root, "
            "or sort the images of val into folders by WNID."
        )
    wnids = []
    for name in names:
        number = re.search(r"ILSVRC2012_val_(\d{8})\.JPEG$", name)
        if number is None or not 1 <= int(number[1]) <= len(truth):
            raise ValueError(
                f"val has the image {name!r}, but the devkit has labels for "
                f"ILSVRC2012_val_NUMBER.JPEG with numbers 1 to {len(truth)}. Remove it."
            )
        wnids.append(truth[int(number[1]) - 1])
    return wnids


def _class_names(wnids: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Name the classes, with the WNID added to a name that two classes have, such as crane."""
    names = {wnid: words.get(wnid, wnid) for wnid in wnids}
    times = Counter(names.values())
    return [f"{name} ({wnid})" if times[name] > 1 else name for wnid, name in names.items()]


if __name__ == "__main__":
    run(__name__)
