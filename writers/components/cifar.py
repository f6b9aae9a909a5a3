"""The shared reader of CIFAR-10 and CIFAR-100, in each form that their home publishes.

That is the binary or the Python version, as an archive or extracted, from
www.cs.toronto.edu/~kriz/cifar.html. Archives are read as they are and must have the published MD5;
of the pickles in the Python version nothing is run. The identifier of an image is its position in
the training or test images, as torchvision counts them.
"""

import hashlib
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex

from .common import Expected, Options, check_no_others, write_splits
from .files import find
from .safe_unpickle import byte_rows, list_of, read_dict

SIDE = 32
BYTES = 3 * SIDE * SIDE  # of an image: all of red, of green, of blue


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    root: Path
    """Folder that holds the archive, or the folder that it makes."""
    mode: Literal["jpg", "raw"] = "raw"
    """Store JPEGs, or pixels as they are: 3 KiB for each image."""
    val: int = 0
    """Training images to hold out as val.beton, equally many of each class, drawn by the seed."""
    download: bool = False
    """Let torchvision fetch the archive (the Python version) into ROOT if nothing is there."""


@dataclass(frozen=True)
class Version:
    """One form in which a dataset is published."""

    archive: str
    md5: str
    folder: str
    """The one that the archive makes."""
    train: tuple[str, ...]
    test: str
    names: str
    """The file of class names."""

    @property
    def files(self) -> tuple[str, ...]:
        """All that is needed of the folder."""
        return (*self.train, self.test, self.names)


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """CIFAR-10 or CIFAR-100."""

    name: str
    """Of the writer."""
    expected: Expected
    binary: Version
    python: Version
    labels: str
    """Key of the labels in a file of the Python version."""
    label_bytes: int
    """Before each image of the binary version; the last is the class."""
    torchvision: str
    """Name of the class in torchvision.datasets that knows the archive's address."""


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
        """Return the number of an image, which has no name."""
        return f"image {self.identifiers[position]}"

    def chosen(self, positions: NDArray[np.int64]) -> "Images":
        """Return the images at `positions`, in that order."""
        chosen = self.labels[positions], self.identifiers[positions]
        return Images(self.pixels[positions], *chosen)


def write_cifar(dataset: Cifar, config: Config) -> dict[str, BetonIndex]:
    """Write train, test and, if asked for, val.

    Raises:
        ValueError: neither version is there, or a file is damaged, or counts are not the dataset's.
    """
    if config.val < 0 or config.val % dataset.expected.classes:
        raise ValueError(
            f"`val` must be a multiple of the {dataset.expected.classes} classes; got "
            f"{config.val}. Pass 0 or, for example, {50 * dataset.expected.classes}."
        )
    if not config.val:
        check_no_others(config.out, ["val"])
    version, read = _open(dataset, config)
    splits = {
        "train": _joined([_parse(dataset, version, name, read(name)) for name in version.train]),
        "test": _parse(dataset, version, version.test, read(version.test)),
    }
    names = _names(dataset, version, read(version.names))
    expected = dict(dataset.expected.images)
    if config.val:
        splits = {**_hold_out(splits["train"], config), "test": splits["test"]}
        expected |= {"train": expected["train"] - config.val, "val": config.val}
    counts = Expected(classes=dataset.expected.classes, images=expected)
    return write_splits(dataset.name, splits, names, config, counts)


def _open(dataset: Cifar, config: Config) -> tuple[Version, Callable[[str], bytes]]:
    """Find a version and return it with what reads one of its files."""
    places = {
        name: version
        for version in (dataset.binary, dataset.python)
        for name in (version.folder, version.archive)
    }
    others = [name for name in places if name != dataset.python.archive]
    if config.download and not any((config.root / name).exists() for name in others):
        _download(dataset, config.root)  # unless that archive is there, whole
    layout = f"{dataset.name} as its archive has it, or the archive (--download fetches it)"
    place = find(config.root, *places, layout=layout)
    version = places[place.name]
    if place.name == version.archive:
        files = _files_of(place, version)
        return version, files.pop  # each is read once
    for name in version.files:
        find(place, name, layout=f"the files of {version.archive}")
    return version, lambda name: (place / name).read_bytes()


def _files_of(archive: Path, version: Version) -> dict[str, bytes]:
    """Read all that is needed of an archive; nothing is extracted."""
    with open(archive, "rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != version.md5:
        raise ValueError(
            f"`{archive}` must have the MD5 {version.md5}; got {found}. Download it again."
        )
    wanted = {f"{version.folder}/{name}": name for name in version.files}
    files: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            stream_of = tar.extractfile(member) if member.name in wanted else None
            if stream_of is not None:
                files[wanted[member.name]] = stream_of.read()
    missing = sorted(set(wanted.values()) - set(files))
    if missing:
        raise ValueError(f"`{archive}` must hold {version.folder}/{missing[0]}; got no such file.")
    return files


def _parse(dataset: Cifar, version: Version, name: str, data: bytes) -> Images:
    """Return the images of one file, numbered from 0."""
    parse = _parse_python if version is dataset.python else _parse_binary
    try:
        pixels, labels = parse(dataset, data)
    except ValueError as error:
        raise _damaged(name, error) from error
    return Images(pixels, labels, np.arange(len(labels), dtype=np.int64))


def _parse_binary(dataset: Cifar, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    size = dataset.label_bytes + BYTES
    if len(data) % size:
        raise ValueError(f"{len(data)} bytes, no multiple of {size}")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return records[:, dataset.label_bytes :], records[:, dataset.label_bytes - 1].astype(np.int64)


def _parse_python(dataset: Cifar, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    entry = read_dict(data)
    pixels = byte_rows(entry.get(b"data"), BYTES)
    labels = list_of(int, entry.get(dataset.labels.encode()))
    if len(labels) != len(pixels):
        raise ValueError(f"{len(labels)} labels for {len(pixels)} images")
    return pixels, np.array(labels, dtype=np.int64)


def _joined(parts: Sequence[Images]) -> Images:
    pixels = np.concatenate([part.pixels for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Images(pixels, labels, np.arange(len(labels), dtype=np.int64))


def _names(dataset: Cifar, version: Version, data: bytes) -> list[str]:
    try:
        if version is dataset.binary:
            return data.decode("ascii").split()
        names = read_dict(data).get(f"{dataset.labels.removesuffix('s')}_names".encode())
        return [name.decode("ascii") for name in list_of(bytes, names)]
    except ValueError as error:
        raise _damaged(version.names, error) from error


def _hold_out(train: Images, config: Config) -> dict[str, Images]:
    rng = np.random.default_rng(config.seed)
    classes = np.unique(train.labels)
    each = config.val // len(classes)
    held = np.zeros(len(train), dtype=bool)
    for label in classes:
        members = rng.permutation(np.flatnonzero(train.labels == label))
        if each >= len(members):
            raise ValueError(
                f"`val` must leave images for training; got {config.val}, {each} of each class, "
                f"and class {label} has {len(members)}. Lower it."
            )
        held[members[:each]] = True
    return {
        "train": train.chosen(np.flatnonzero(~held)),
        "val": train.chosen(np.flatnonzero(held)),
    }


def _download(dataset: Cifar, root: Path) -> None:
    import torchvision.datasets  # slow to import, and only needed here

    known = getattr(torchvision.datasets, dataset.torchvision)
    # Not the class itself: it would extract the archive and unpickle its files.
    torchvision.datasets.utils.download_url(known.url, str(root), known.filename, known.tgz_md5)


def _damaged(name: str, error: ValueError) -> ValueError:
    return ValueError(
        f"`{name}` must be as CIFAR's home publishes it; got {error}. Download the archive again."
    )
