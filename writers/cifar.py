"""Write betons of CIFAR-10 or CIFAR-100: train, test and, with --val, a part of train as val.

ROOT (--root) holds one of the published forms, from www.cs.toronto.edu/~kriz/cifar.html:

    --name cifar10                                 --name cifar100
    cifar-10-batches-bin/  (*.bin, batches...)     cifar-100-binary/  (train.bin, test.bin, ...)
    cifar-10-binary.tar.gz                         cifar-100-binary.tar.gz
    cifar-10-batches-py/   (data_batch_1, ...)     cifar-100-python/  (train, test, meta)
    cifar-10-python.tar.gz                         cifar-100-python.tar.gz

The datasets have 10 or 100 classes (the fine labels), and 50,000 training and 10,000 test images of
32 x 32 pixels. By default they are stored raw. Archives are not extracted, and must have the
published MD5. Pickles in the Python version are read without running code. The identifier of an
image is its position in the training or test images, as in torchvision.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_choice

from .components.common import (
    CountedOptions,
    SplitOptions,
    check_counts,
    drawn_splits,
    run,
    write_splits,
)
from .components.files import find, read_members
from .components.safe_unpickle import byte_rows, read_dict

SIDE = 32
BYTES = 3 * SIDE * SIDE  # per image: all of red, then green, then blue
IMAGES = {"train": 50_000, "test": 10_000}

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, 3072) as in the files, and labels


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions, SplitOptions):
    """Options of the writer."""

    name: Literal["cifar10", "cifar100"]
    """Name of the dataset."""
    root: Path
    """Folder of the archive, or of the folder extracted from it."""
    mode: Literal["jpg", "raw"] = "raw"
    """Store images as JPEGs or as raw pixels, 3 KiB per image."""
    download: bool = False
    """Let torchvision download the Python version's archive into ROOT if nothing is there."""


@dataclass(frozen=True)
class Version:
    """A published form of a dataset."""

    archive: str
    md5: str
    folder: str
    """Folder that the archive contains."""
    train: tuple[str, ...]
    test: str
    names: str
    """File of the class names."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files to read."""
        return (*self.train, self.test, self.names)


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100."""

    classes: int
    binary: Version
    python: Version
    labels: str
    """Key of the labels in the Python version's files."""
    label_bytes: int
    """Bytes before each image in the binary version; the last one is the class."""

    def read(self, config: Config) -> tuple[list[Images], list[str]]:
        """Return the images of train and test, and the class names."""
        version, files = self._find(config)
        splits = []
        for names in (version.train, (version.test,)):
            parts = [self._parse(version, name, files.pop(name)) for name in names]
            planes, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            splits.append((planes, labels))
        return splits, self._class_names(version, files[version.names])

    def _find(self, config: Config) -> tuple[Version, dict[str, bytes]]:
        versions = {
            name: version
            for version in (self.binary, self.python)
            for name in (version.folder, version.archive)
        }
        others = [name for name in versions if name != self.python.archive]
        if config.download and not any((config.root / name).exists() for name in others):
            _download(config)  # an incomplete archive is downloaded again
        layout = f"{config.name}, extracted or as an archive (--download gets it)"
        place = find(config.root, *versions, layout=layout)
        version = versions[place.name]
        if place.name == version.archive:
            return version, _read_archive(place, version)
        for name in version.files:
            find(place, name, layout=f"all files of {version.archive}")
        return version, {name: _content(place / name) for name in version.files}

    def _parse(self, version: Version, name: str, data: bytes) -> Images:
        try:
            return self._parse_python(data) if version is self.python else self._parse_binary(data)
        except ValueError as error:
            raise _damaged(name, error) from error

    def _parse_binary(self, data: bytes) -> Images:
        size = self.label_bytes + BYTES
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes, not a multiple of {size}")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1].astype(np.int64)

    def _parse_python(self, data: bytes) -> Images:
        entry = read_dict(data)
        pixels = byte_rows(entry.get(b"data"), BYTES)
        labels = np.array(entry.get(self.labels.encode()))
        if labels.dtype != np.int64 or labels.shape != (len(pixels),):
            raise ValueError(f"{labels.size} {labels.dtype} labels for {len(pixels)} images")
        return pixels, labels

    def _class_names(self, version: Version, data: bytes) -> list[str]:
        try:
            if version is self.binary:
                return data.decode("ascii").split()
            names: Any = read_dict(data).get(f"{self.labels.removesuffix('s')}_names".encode())
            return [str(name, "ascii") for name in names]
        except (ValueError, TypeError) as error:
            raise _damaged(version.names, error) from error


DATASETS = {
    "cifar10": Cifar(
        classes=10,
        binary=Version(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
        ),
        python=Version(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{number}" for number in range(1, 6)),
            test="test_batch",
            names="batches.meta",
        ),
        labels="labels",
        label_bytes=1,
    ),
    "cifar100": Cifar(
        classes=100,
        binary=Version(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            names="fine_label_names.txt",
        ),
        python=Version(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train=("train",),
            test="test",
            names="meta",
        ),
        labels="fine_labels",
        label_bytes=2,
    ),
}


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write train, test and, with `config.val`, val; return the index of each."""
    dataset = DATASETS[check_choice("name", config.name, DATASETS)]
    read, names = dataset.read(config)
    splits: dict[str, Any] = dict(zip(IMAGES, map(_samples, read), strict=True))
    check_counts(splits, names, (dataset.classes, IMAGES), config)
    return write_splits("cifar", drawn_splits(splits, config), names, config)


def _download(config: Config) -> None:
    import torchvision.datasets

    known = getattr(torchvision.datasets, config.name.upper())
    # torchvision's class itself would extract the archive and unpickle its files.
    torchvision.datasets.utils.download_url(
        known.url, str(config.root), known.filename, known.tgz_md5
    )


def _content(path: Path) -> bytes:
    with utils.open_file(path) as stream:
        return stream.read()


def _read_archive(archive: Path, version: Version) -> dict[str, bytes]:
    with utils.open_file(archive) as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != version.md5:
        raise ValueError(
            f"{archive} is incomplete or damaged: its MD5 is {md5}, not {version.md5}. "
            "Download it again."
        )
    wanted = {f"{version.folder}/{name}": name for name in version.files}
    return {wanted[name]: data for name, data in read_members(archive, wanted).items()}


def _samples(read: Images) -> utils.LazyImages:
    """Return the images of a split. Their positions are their identifiers."""
    planes, labels = read

    def image(position: int) -> NDArray[np.uint8]:
        pixels = planes[position].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        return np.ascontiguousarray(pixels)

    return utils.LazyImages(image, labels)


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is damaged: {error}. Download the archive again.")


if __name__ == "__main__":
    run(__name__)
