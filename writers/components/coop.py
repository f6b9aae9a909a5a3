"""The shared reader of CoOp's splits, for the writers of the nine targets.

CoOp publishes a fixed split of each dataset, `split_zhou_NAME.json`; its DATASETS.md says where to
get it (github.com/KaiyangZhou/CoOp). It holds `{"train": [[path, label, class name], ...], "val":
[...], "test": [...]}`, with paths relative to the folder of the images. The identifier of an image
is its position in that file, counted through train, val and test.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp4tl_ffcv import BetonIndex

from .common import Expected, Options, write_splits
from .files import find
from .listed import Listing, image_files

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    root: Path
    """Folder of the dataset: the images, and CoOp's split file."""
    split_file: Path | None = None
    """CoOp's split; by default it lies in ROOT under its own name."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(Config):
    """What to write."""

    download: bool = False
    """Let torchvision fetch the images into ROOT if they are missing. It has no split file."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One of the nine datasets, as its archive and CoOp's split file lay it out."""

    name: str
    """Of the writer."""
    split_file: str
    """Name of CoOp's file."""
    images: tuple[str, ...]
    """Folder, below the root, that the paths are relative to: CoOp's place, then torchvision's."""
    expected: Expected
    torchvision: str | None = None
    """Name of the class in torchvision.datasets that can fetch the images."""


def write_target(target: Target, config: Config) -> dict[str, BetonIndex]:
    """Write train, val and test of a dataset as CoOp splits it.

    Raises:
        ValueError: the split file or images are missing, the split file is not of CoOp's form, or
            its counts are not the dataset's.
    """
    split_file = config.split_file or config.root / target.split_file
    if not split_file.is_file():
        raise ValueError(
            f"`split_file` must be CoOp's {target.split_file}; got no file {str(split_file)!r}. "
            "Get it as CoOp's DATASETS.md says (github.com/KaiyangZhou/CoOp; torchvision cannot "
            "fetch it), and put it there or pass --split-file."
        )
    splits, class_names = read_split(split_file)
    if isinstance(config, DownloadConfig) and config.download:
        _download(target, config.root)
    layout = f"the images of {target.name} as its own archive has them"
    if isinstance(config, DownloadConfig):
        layout += " (--download fetches them)"
    folder = find(config.root, *target.images, layout=layout)
    samples = image_files(folder, splits, split_file)
    return write_splits(target.name, samples, class_names, config, target.expected)


def read_split(path: Path) -> tuple[dict[str, Listing], list[str]]:
    """Read a split file: the images (path, label, identifier) of each split, and the class names.

    Raises:
        ValueError: the file is not of CoOp's form, the labels do not count from 0, or a label has
            two names.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_of_coop(path, "no JSON") from error
    if not isinstance(content, dict) or set(content) != set(SPLITS):
        raise _not_of_coop(path, "other keys" if isinstance(content, dict) else "another value")
    splits: dict[str, Listing] = {}
    names: dict[int, str] = {}
    identifier = 0
    for split in SPLITS:
        rows = content[split]
        if not isinstance(rows, list):
            raise _not_of_coop(path, f"no list under {split!r}")
        splits[split] = listing = []
        for row in rows:
            _check_row(path, row)
            name = names.setdefault(row[1], row[2])
            if name != row[2]:
                raise _not_of_coop(path, f"the names {name!r} and {row[2]!r} for label {row[1]}")
            listing.append((row[0], row[1], identifier))
            identifier += 1
    if not names or set(names) != set(range(len(names))):
        absent = next((label for label in range(len(names)) if label not in names), 0)
        raise _not_of_coop(path, f"{len(names)} labels, and none of them is {absent}")
    return splits, [names[label] for label in range(len(names))]


def _check_row(path: Path, row: Any) -> None:
    if not (
        isinstance(row, list)
        and len(row) == 3
        and isinstance(row[0], str)
        and isinstance(row[1], int)
        and not isinstance(row[1], bool)
        and isinstance(row[2], str)
    ):
        raise _not_of_coop(path, f"the row {row!r:.100}")


def _not_of_coop(path: Path, got: str) -> ValueError:
    return ValueError(
        f"`{path}` must hold train, val and test, lists of [path, label, class name] with labels "
        f"that count from 0 and one name each; got {got}. Take the file that CoOp publishes."
    )


def _download(target: Target, root: Path) -> None:
    if target.torchvision is None or any((root / name).is_dir() for name in target.images):
        return
    import torchvision.datasets  # slow to import, and only needed here

    root.mkdir(parents=True, exist_ok=True)
    try:
        getattr(torchvision.datasets, target.torchvision)(str(root), download=True)
    except ModuleNotFoundError as error:
        # After the download torchvision reads annotations of its own, of some datasets with scipy.
        # They are not needed here; that the images are there is checked next.
        if error.name != "scipy":
            raise
