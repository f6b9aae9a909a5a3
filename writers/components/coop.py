"""Write a dataset with CoOp's train, val and test splits; shared by the writers of nine targets.

CoOp (github.com/KaiyangZhou/CoOp) publishes a split file `split_zhou_NAME.json` for each dataset;
its DATASETS.md links to them. A split file holds `{"train": [[path, label, class name], ...],
"val": [...], "test": [...]}`, with paths relative to the folder of the images. The identifier of an
image is its position in the split file, counted through train, val and test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dp4tl_ffcv

from .common import Expected, Options, write_splits
from .files import find
from .listed import Listing, image_files

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Options of a dataset that torchvision cannot download."""

    root: Path
    """Folder of the dataset: its images and CoOp's split file."""
    split_file: Path | None = None
    """CoOp's split file; by default the one in ROOT."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(Config):
    """Options of a dataset that torchvision can download."""

    download: bool = False
    """Let torchvision download missing images (but no split file) into ROOT."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A dataset, as its archive and CoOp's split file lay it out."""

    name: str
    """Name of the writer."""
    split_file: str
    """Name of CoOp's split file."""
    images: tuple[str, ...]
    """Folders below ROOT that may hold the images: as CoOp, then as torchvision extracts them."""
    expected: Expected
    torchvision: str | None = None
    """Class in torchvision.datasets that downloads the images."""

    def write(self, config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
        """Write train, val and test and return the index of each.

        Raises:
            ValueError: the split file or images are missing, the split file is malformed, or its
                counts are not the dataset's.
        """
        split_file = config.split_file or config.root / self.split_file
        if not split_file.is_file():
            raise ValueError(
                f"There is no split file {str(split_file)!r}. torchvision cannot download it: get "
                f"{self.split_file} as CoOp's DATASETS.md says (github.com/KaiyangZhou/CoOp), and "
                "pass its path as --split-file if it is elsewhere."
            )
        splits, class_names = read_split(split_file)
        layout = f"the images of {self.name} as its archive has them"
        if isinstance(config, DownloadConfig):
            layout += " (--download gets them)"
            if config.download:
                self._download(config.root)
        folder = find(config.root, *self.images, layout=layout)
        samples = image_files(folder, splits, split_file)
        return write_splits(self.name, samples, class_names, config, self.expected)

    def _download(self, root: Path) -> None:
        if self.torchvision is None or any((root / name).is_dir() for name in self.images):
            return
        import torchvision.datasets

        root.mkdir(parents=True, exist_ok=True)
        try:
            getattr(torchvision.datasets, self.torchvision)(str(root), download=True)
        except ModuleNotFoundError as error:
            # After downloading, some classes read annotations with scipy, which are not needed.
            if error.name != "scipy":
                raise


def read_split(path: Path) -> tuple[dict[str, Listing], list[str]]:
    """Read a split file: the images (path, label, identifier) by split, and the class names.

    Raises:
        ValueError: the file is malformed, a label is missing, or a label has two names.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _malformed(path, f"it is not JSON: {error}") from error
    if not isinstance(content, dict) or set(content) != set(SPLITS):
        raise _malformed(path, "its keys are not train, val and test")
    splits: dict[str, Listing] = {}
    names: dict[int, str] = {}
    identifier = 0
    for split in SPLITS:
        if not isinstance(content[split], list):
            raise _malformed(path, f"{split} is not a list")
        splits[split] = listing = []
        for row in content[split]:
            _check_row(path, row)
            name = names.setdefault(row[1], row[2])
            if name != row[2]:
                raise _malformed(path, f"label {row[1]} has the names {name!r} and {row[2]!r}")
            listing.append((row[0], row[1], identifier))
            identifier += 1
    absent = set(range(max(1, len(names)))).difference(names)
    if absent:
        raise _malformed(path, f"it has {len(names)} labels, but not label {min(absent)}")
    return splits, [names[label] for label in range(len(names))]


def _check_row(path: Path, row: Any) -> None:
    if not isinstance(row, list) or [type(value) for value in row] != [str, int, str]:
        raise _malformed(path, f"the row {row!r:.100} is not [path, label, class name]")


def _malformed(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not a split file of CoOp: {why}.")
