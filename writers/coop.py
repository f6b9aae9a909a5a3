"""Write betons of DTD, Food-101 and seven other targets with CoOp's splits: `--name dtd`.

ROOT (--root) holds the images, extracted from the dataset's archive, and CoOp's split file,
split_zhou_DATASET.json. CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) links to both.

    --name          train     val    test  classes   images in ROOT, from the archive
    caltech101      4,128   1,649   2,465      100   101_ObjectCategories/, the same .tar.gz
    dtd             2,820   1,128   1,692       47   images/, dtd-r1.0.1.tar.gz
    eurosat        13,500   5,400   8,100       10   2750/, EuroSAT.zip (RGB, 64 x 64 pixels)
    flowers102      4,093   1,633   2,463      102   jpg/, 102flowers.tgz
    food101        50,500  20,200  30,300      101   images/, food-101.tar.gz
    oxford_pets     2,944     736   3,669       37   images/, images.tar.gz
    stanford_cars   6,509   1,635   8,041      196   cars_train/, cars_test/, cars_{train,test}.tgz
    sun397         15,880   3,970  19,850      397   SUN397/, SUN397.tar.gz
    ucf101          7,639   1,898   3,783      101   UCF-101-midframes/, UCF-101-midframes.zip

--download lets torchvision get missing images, except for stanford_cars and ucf101. It never gets
the split file.

CoOp leaves out two classes of Caltech-101 (BACKGROUND_Google, Faces_easy), trains on half of each
class of Flowers, splits each class of Food-101 into 500, 200 and 300 images, and uses the first of
SUN397's ten and of UCF101's three partitions. Pets and Cars keep the datasets' own test splits. The
identifier of an image is its position in the split file, counted through train, val and test.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import dp4tl_ffcv
from dp4tl_ffcv.utils import check_choice, read_json

from .components.common import SPLITS, CountedOptions, run, write_splits
from .components.files import find
from .components.listed import Listing, image_files


@dataclass(frozen=True)
class Target:
    """Layout and size of a dataset."""

    split_file: str
    """CoOp's split file is split_zhou_SPLIT_FILE.json."""
    images: tuple[str, ...]
    """Folders below ROOT that may hold the images, as CoOp or as torchvision extracts them."""
    classes: int
    counts: tuple[int, int, int]
    """Numbers of images in train, val and test."""
    torchvision: str | None = None
    """Class in torchvision.datasets that downloads the images."""


# fmt: off
TARGETS = {
    "caltech101": Target(
        "Caltech101", ("101_ObjectCategories", "caltech101/101_ObjectCategories"),
        100, (4_128, 1_649, 2_465), "Caltech101",
    ),
    "dtd": Target(
        "DescribableTextures", ("images", "dtd/dtd/images"), 47, (2_820, 1_128, 1_692), "DTD"
    ),
    "eurosat": Target(
        "EuroSAT", ("2750", "eurosat/2750"), 10, (13_500, 5_400, 8_100), "EuroSAT"
    ),
    "flowers102": Target(
        "OxfordFlowers", ("jpg", "flowers-102/jpg"), 102, (4_093, 1_633, 2_463), "Flowers102"
    ),
    "food101": Target(
        "Food101", ("images", "food-101/images"), 101, (50_500, 20_200, 30_300), "Food101"
    ),
    "oxford_pets": Target(
        "OxfordPets", ("images", "oxford-iiit-pet/images"), 37, (2_944, 736, 3_669), "OxfordIIITPet"
    ),
    "stanford_cars": Target("StanfordCars", (".",), 196, (6_509, 1_635, 8_041)),
    "sun397": Target("SUN397", ("SUN397",), 397, (15_880, 3_970, 19_850), "SUN397"),
    "ucf101": Target("UCF101", ("UCF-101-midframes",), 101, (7_639, 1_898, 3_783)),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions):
    """Options of the writer."""

    name: str
    """Name of the dataset, such as dtd."""
    root: Path
    """Folder of the images and of CoOp's split file."""
    split_file: Path | None = None
    """CoOp's split file, if it is not in ROOT."""
    download: bool = False
    """Let torchvision download missing images into ROOT."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write train, val and test and return the index of each."""
    target = TARGETS[check_choice("name", config.name, TARGETS)]
    name = f"split_zhou_{target.split_file}.json"
    split_file = config.split_file or config.root / name
    if not split_file.is_file():
        raise ValueError(
            f"There is no split file {str(split_file)!r}. Get {name} as CoOp's DATASETS.md says "
            "(github.com/KaiyangZhou/CoOp), and pass its path as --split-file if it is elsewhere."
        )
    splits, class_names = read_split(split_file)
    if config.download:
        _download(config.name, target, config.root)
    layout = f"the images of {config.name} as its archive has them"
    layout += " (--download gets them)" if target.torchvision else ""
    folder = find(config.root, *target.images, layout=layout)
    samples = image_files(config.root, folder, splits, split_file)
    expected = (target.classes, dict(zip(SPLITS, target.counts, strict=True)))
    return write_splits("coop", samples, class_names, config, expected)


def _download(name: str, target: Target, root: Path) -> None:
    if target.torchvision is None:
        raise ValueError(
            f"torchvision cannot download {name}. Get the archive that --help names, and leave out "
            "--download."
        )
    if any((root / folder).is_dir() for folder in target.images):
        return
    import torchvision.datasets

    root.mkdir(parents=True, exist_ok=True)
    try:
        getattr(torchvision.datasets, target.torchvision)(str(root), download=True)
    except ModuleNotFoundError as error:
        # After downloading, some classes read annotations with scipy, which are not needed.
        if error.name != "scipy":
            raise


def read_split(path: Path) -> tuple[dict[str, Listing], list[str]]:
    """Read a split file: the images (path, label, identifier) by split, and the class names.

    The file holds `{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`.

    Raises:
        ValueError: the file is malformed, a label is missing, or a label has two names.
    """
    try:
        return _parse_split(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a split file of CoOp: {error}.") from error


def _parse_split(content: Any) -> tuple[dict[str, Listing], list[str]]:
    if not isinstance(content, dict) or set(content) != set(SPLITS):
        raise ValueError("its keys are not train, val and test")
    splits: dict[str, Listing] = {}
    names: dict[int, str] = {}
    numbers = count()
    for split in SPLITS:
        if not isinstance(content[split], list):
            raise ValueError(f"{split} is not a list")
        for row in content[split]:
            if not isinstance(row, list) or [type(value) for value in row] != [str, int, str]:
                raise ValueError(f"the row {row!r:.100} is not [path, label, class name]")
            if names.setdefault(row[1], row[2]) != row[2]:
                raise ValueError(f"label {row[1]} has the names {names[row[1]]!r} and {row[2]!r}")
        splits[split] = [(file, label, next(numbers)) for file, label, _ in content[split]]
    absent = set(range(max(1, len(names)))).difference(names)
    if absent:
        raise ValueError(f"it has {len(names)} labels, but not label {min(absent)}")
    return splits, [names[label] for label in range(len(names))]


if __name__ == "__main__":
    run(__name__)
