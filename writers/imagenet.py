"""Write betons from ImageNet (ILSVRC2012), train and val, from folders or the official archives.

ROOT holds, as image-net.org gives them out (free, after registration; none is unpacked):

    ILSVRC2012_img_train.tar        a tar of 1,000 tars, WNID.tar
    ILSVRC2012_img_val.tar          ILSVRC2012_val_00000001.JPEG to ..._00050000.JPEG
    ILSVRC2012_devkit_t12.tar.gz    labels of val, and names of the classes

or the folders that people make of them, each taken before the archive of the same split:

    train/WNID/*.JPEG
    val/WNID/*.JPEG, or val/ILSVRC2012_val_*.JPEG with the devkit
    ILSVRC2012_devkit_t12/data/meta.mat, ILSVRC2012_validation_ground_truth.txt

Classes are numbered in the order of their WNIDs, as everywhere. They are named by the devkit where
it is there (this needs scipy), else by WNIDs. The identifier of an image is its position in the
listing by WNID (of a flat val: by file name) and file name.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from sys import intern
from typing import Literal, TypeAlias

import numpy as np

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import ImageFiles, TarImages, TarMembers, list_tar

from .components.common import Expected, Options, run, write_splits
from .components.files import IMAGE_SUFFIXES, find, folders_of, images_below, is_hidden

Images: TypeAlias = list[str] | TarMembers

EXPECTED = Expected(classes=1000, images={"train": 1_281_167, "val": 50_000})
DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
LAYOUTS = {
    "train": "train/WNID/*.JPEG or ILSVRC2012_img_train.tar",
    "val": "val/WNID/*.JPEG, val/*.JPEG or ILSVRC2012_img_val.tar",
}


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    root: Path
    """Folder of the archives, or of train and val."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    """Which to write."""


@dataclass(frozen=True)
class Devkit:
    """What the development kit says."""

    wnids: dict[int, str]
    """By ILSVRC2012_ID: of the 1,000 classes, and of what is above them in WordNet."""
    words: dict[str, str]
    """By WNID."""
    truth: list[int]
    """ILSVRC2012_ID of each validation image."""


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each split."""
    devkit = read_devkit(config.root)
    listings = {split: _list(config.root, split, devkit) for split in config.splits}
    wnids = sorted({wnid for _, of_each in listings.values() for wnid in of_each})
    ids = {wnid: label for label, wnid in enumerate(wnids)}
    splits: dict[str, ImageFiles | TarImages] = {}
    for split, (images, of_each) in listings.items():
        labels = [ids[wnid] for wnid in of_each]
        if isinstance(images, TarMembers):
            splits[split] = TarImages(images, labels)
        else:
            splits[split] = ImageFiles(images, labels)
    return write_splits("imagenet", splits, _names(wnids, devkit), config, EXPECTED)


def read_devkit(root: Path) -> Devkit | None:
    """Read the development kit below `root`; None when there is none.

    Raises:
        ValueError: it lacks a file, or scipy is not installed.
    """
    folder, archive = root / DEVKIT, root / f"{DEVKIT}.tar.gz"
    if not folder.is_dir() and not archive.is_file():
        return None
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ValueError(
            "`scipy` must be installed to read the devkit's meta.mat; got none. "
            "Run: pip install scipy"
        ) from error
    try:
        if folder.is_dir():
            meta, truth = ((folder / name).read_bytes() for name in (META, TRUTH))
        else:
            with tarfile.open(archive) as tar:
                meta, truth = (_extract(tar, f"{DEVKIT}/{name}") for name in (META, TRUTH))
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"`root` must hold a whole devkit, with {META} and {TRUTH}; got {error}. "
            f"Get {DEVKIT}.tar.gz again."
        ) from error
    synsets = np.atleast_1d(loadmat(BytesIO(meta), squeeze_me=True)["synsets"])
    return Devkit(
        wnids={int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets},
        words={str(each["WNID"]): str(each["words"]) for each in synsets},
        truth=[int(number) for number in truth.split()],
    )


def _extract(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    if stream is None:
        raise KeyError(f"no file {name!r}")
    return stream.read()


def _list(root: Path, split: str, devkit: Devkit | None) -> tuple[Images, list[str]]:
    """Return the images of a split, and the WNID of each."""
    place = find(root, split, f"ILSVRC2012_img_{split}.tar", layout=LAYOUTS[split])
    if not place.is_dir():
        return _list_archive(place, split, devkit)
    folders = folders_of(place)
    if split == "val" and not folders:
        paths = images_below(place)
        return paths, _truth_of(paths, devkit)
    found = {wnid: images_below(place / wnid) for wnid in folders}
    return (
        [path for paths in found.values() for path in paths],
        [wnid for wnid, paths in found.items() for _ in paths],
    )


def _list_archive(path: Path, split: str, devkit: Devkit | None) -> tuple[Images, list[str]]:
    members = list_tar(path, nested=split == "train")
    found = sorted((name, i) for i, name in enumerate(members.names()))
    found = [(n, i) for n, i in found if n.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(n)]
    names = [name for name, _ in found]
    wnids = _truth_of(names, devkit) if split == "val" else [_inner_of(path, n) for n in names]
    return members.chosen([i for _, i in found]), wnids


def _inner_of(archive: Path, name: str) -> str:
    """Return the WNID of `WNID.tar/FILE`."""
    inner, slash, _ = name.rpartition("/")
    if not slash:
        raise ValueError(
            f"`{archive}` must be a tar of 1,000 tars, one per class; got the image {name!r} in "
            "it. Take the archive of the training images."
        )
    return intern(inner.rpartition("/")[2].removesuffix(".tar"))


def _truth_of(names: Sequence[str], devkit: Devkit | None) -> list[str]:
    """Return the WNIDs of validation images, whose names count from 1."""
    if devkit is None:
        raise ValueError(
            f"`root` must hold {DEVKIT}.tar.gz or the folder {DEVKIT}, which has the labels of "
            "val; got neither. Get it from image-net.org, or sort val into folders by WNID."
        )
    wnids = []
    for name in names:
        number = re.search(r"ILSVRC2012_val_(\d{8})\.JPEG$", name)
        if number is None or not 1 <= int(number[1]) <= len(devkit.truth):
            raise ValueError(
                "`val` must hold ILSVRC2012_val_NUMBER.JPEG, counted from 1 to "
                f"{len(devkit.truth)}, the labels of the devkit; got {name!r}. Remove it."
            )
        wnids.append(devkit.wnids[devkit.truth[int(number[1]) - 1]])
    return wnids


def _names(wnids: Sequence[str], devkit: Devkit | None) -> list[str]:
    """Name the classes; two are called crane, so what is not unique gets its WNID."""
    words = [devkit.words.get(wnid, wnid) if devkit else wnid for wnid in wnids]
    times = Counter(words)
    return [
        word if times[word] == 1 else f"{word} ({wnid})"
        for word, wnid in zip(words, wnids, strict=True)
    ]


if __name__ == "__main__":
    run("imagenet", Config, write, __doc__)
