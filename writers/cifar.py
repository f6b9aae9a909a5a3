"""Write betons of CIFAR-10 or CIFAR-100: train, test and, with --val N, a part of train as val.

ROOT holds one of the published forms, from www.cs.toronto.edu/~kriz/cifar.html:

    --name cifar10                                 --name cifar100
    cifar-10-batches-bin/  (*.bin, batches...)     cifar-100-binary/  (train.bin, test.bin, ...)
    cifar-10-binary.tar.gz                         cifar-100-binary.tar.gz
    cifar-10-batches-py/   (data_batch_1, ...)     cifar-100-python/  (train, test, meta)
    cifar-10-python.tar.gz                         cifar-100-python.tar.gz

10 or 100 classes (the fine labels), 50,000 images for training and 10,000 for testing, of 32 x 32
pixels, stored raw. Archives are not extracted, and must have the published MD5. Pickles in the
Python version are read without running code. The identifier of an image is its position in the
training or test images, as in torchvision.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv.validate import check_choice

from .components.common import Expected, Options, check_no_stale, run, write_splits
from .components.files import find
from .components.safe_unpickle import byte_rows, read_dict

SIDE = 32
BYTES = 3 * SIDE * SIDE  # per image: all of red, then green, then blue
IMAGES = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Options of the writer."""

    name: Literal["cifar10", "cifar100"]
    """Name of the dataset."""
    root: Path
    """Folder of the archive, or of the folder extracted from it."""
    mode: Literal["jpg", "raw"] = "raw"
    """Store images as JPEGs or as raw pixels, 3 KiB per image."""
    val: int = 0
    """Number of training images to move to val.beton, equally many per class, drawn by --seed."""
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


@dataclass(frozen=True, eq=False)
class Images(Sequence[tuple[NDArray[np.uint8], int, int]]):
    """Images in memory as samples (pixels, label, identifier)."""

    pixels: NDArray[np.uint8]
    """(N, 3072), as in the files."""
    labels: NDArray[np.int64]
    identifiers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[NDArray[np.uint8], int, int]:  # type: ignore[override]  # one at a time
        planes = self.pixels[position].reshape(3, SIDE, SIDE)
        label, identifier = int(self.labels[position]), int(self.identifiers[position])
        return np.ascontiguousarray(planes.transpose(1, 2, 0)), label, identifier

    def name(self, position: int) -> str:
        """Return `image IDENTIFIER`."""
        return f"image {self.identifiers[position]}"

    def chosen(self, mask: NDArray[np.bool_]) -> Images:
        """Return the images where `mask` is true."""
        return Images(self.pixels[mask], self.labels[mask], self.identifiers[mask])


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

    def write(self, config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
        """Write train, test and, with `config.val`, val; return the index of each."""
        classes = self.classes
        if config.val < 0 or config.val % classes:
            raise ValueError(
                f"--val must be 0 or a multiple of the {classes} classes, such as {50 * classes}; "
                f"got {config.val}."
            )
        if not config.val:
            check_no_stale(config.out, ["val"])
        version, files = self._read(config)
        splits = {
            "train": self._parse(version, version.train, files),
            "test": self._parse(version, (version.test,), files),
        }
        names = self._class_names(version, files[version.names])
        counts = dict(IMAGES)
        if config.val:
            splits = {**_hold_out(splits["train"], config), "test": splits["test"]}
            counts |= {"train": counts["train"] - config.val, "val": config.val}
        return write_splits("cifar", splits, names, config, Expected(classes, counts))

    def _read(self, config: Config) -> tuple[Version, dict[str, bytes]]:
        """Find a version and read its files."""
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
        return version, {name: (place / name).read_bytes() for name in version.files}

    def _parse(self, version: Version, names: Sequence[str], files: dict[str, bytes]) -> Images:
        """Return the images of the named files and free the files' memory."""
        parse = self._parse_python if version is self.python else self._parse_binary
        parts = []
        for name in names:
            try:
                parts.append(parse(files.pop(name)))
            except ValueError as error:
                raise _damaged(name, error) from error
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Images(pixels, labels, np.arange(len(labels), dtype=np.int64))

    def _parse_binary(self, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        size = self.label_bytes + BYTES
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes, not a multiple of {size}")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1].astype(np.int64)

    def _parse_python(self, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
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
    return DATASETS[check_choice("name", config.name, DATASETS)].write(config)


def _download(config: Config) -> None:
    import torchvision.datasets

    known = getattr(torchvision.datasets, config.name.upper())
    # torchvision's class itself would extract the archive and unpickle its files.
    torchvision.datasets.utils.download_url(
        known.url, str(config.root), known.filename, known.tgz_md5
    )


def _read_archive(archive: Path, version: Version) -> dict[str, bytes]:
    with open(archive, "rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != version.md5:
        raise ValueError(
            f"{archive} is incomplete or damaged: its MD5 is {md5}, not {version.md5}. "
            "Download it again."
        )
    wanted = {f"{version.folder}/{name}": name for name in version.files}
    files: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            stream_of = tar.extractfile(member) if member.name in wanted else None
            if stream_of is not None:
                files[wanted[member.name]] = stream_of.read()
    return files


def _hold_out(train: Images, config: Config) -> dict[str, Images]:
    rng = np.random.default_rng(config.seed)
    classes = np.unique(train.labels)
    each = config.val // len(classes)
    held = np.zeros(len(train), dtype=bool)
    for label in classes:
        members = rng.permutation(np.flatnonzero(train.labels == label))
        if each >= len(members):
            raise ValueError(
                f"--val {config.val} takes {each} images of each class, but class {label} has "
                f"{len(members)} training images. Pass a smaller number."
            )
        held[members[:each]] = True
    return {"train": train.chosen(~held), "val": train.chosen(held)}


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is damaged: {error}. Download the archive again.")


if __name__ == "__main__":
    run(__name__)
