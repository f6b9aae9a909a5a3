"""Write betons from a classification dataset of torchvision.datasets: `--name DTD --root data`.

ROOT (--root) is the `root` of torchvision's class. --download lets the class download the dataset
if it can. Splits are torchvision's: train and test, and val if there is one. OxfordIIITPet's
trainval is written as train, and a dataset without splits as all. --val and --test draw splits that
the dataset lacks from each class, of train or of all images. --arguments passes further arguments
to the class, such as `partition=2` or `annotation_level=family`.

A local copy of MNIST, FashionMNIST or KMNIST is read without --download if its four files, unpacked
by gunzip, are ROOT/NAME/raw/*-ubyte.

Image files keep their bytes. Class ids and names are torchvision's. The identifier of an image is
its index in torchvision's dataset.

The datasets: Caltech101, Caltech256, CIFAR10, CIFAR100, CLEVRClassification, Country211, DTD,
EMNIST, EuroSAT, FashionMNIST, FER2013, FGVCAircraft, Flowers102, Food101, GTSRB, Imagenette,
INaturalist, KMNIST, LFWPeople, MNIST, OxfordIIITPet, PCAM, Places365, QMNIST, RenderedSST2,
SEMEION, StanfordCars, STL10, SUN397, SVHN, USPS. ImageNet and folders of images have their own
writers.
"""

from __future__ import annotations

import inspect
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_choice

from .components.common import (
    SPLITS,
    CountedOptions,
    SplitOptions,
    check_counts,
    check_no_stale,
    run,
    write_splits,
)
from .components.draw import draw_missing

Arguments = Mapping[str, Any]


Split = tuple[int, Arguments]  # number of images, and the arguments that choose the split


def _known(
    classes: int, argument: str = "split", **splits: int | tuple[int, Any]
) -> tuple[int, dict[str, Split]]:
    """Describe each split by its number of images and the value of `argument`.

    The value is the split's name if only the number is given.
    """
    pairs = {s: each if isinstance(each, tuple) else (each, s) for s, each in splits.items()}
    return classes, {s: (count, {argument: value}) for s, (count, value) in pairs.items()}


# Number of classes, and the splits.
KNOWN: dict[str, tuple[int, dict[str, Split]]] = {
    "Caltech101": (101, {"all": (8_677, {})}),
    "Caltech256": (257, {"all": (30_607, {})}),
    "CIFAR10": _known(10, "train", train=(50_000, True), test=(10_000, False)),
    "CIFAR100": _known(100, "train", train=(50_000, True), test=(10_000, False)),
    "CLEVRClassification": _known(11, train=70_000, val=15_000),  # numbers of objects, to 10
    "Country211": _known(211, train=31_650, val=(10_550, "valid"), test=21_100),
    "DTD": _known(47, train=1_880, val=1_880, test=1_880),
    "EMNIST": (
        47,
        {
            "train": (112_800, {"split": "balanced", "train": True}),
            "test": (18_800, {"split": "balanced", "train": False}),
        },
    ),
    "EuroSAT": (10, {"all": (27_000, {})}),
    "FashionMNIST": _known(10, "train", train=(60_000, True), test=(10_000, False)),
    "FER2013": _known(7, train=28_709, test=7_178),
    "FGVCAircraft": _known(100, train=3_334, val=3_333, test=3_333),
    "Flowers102": _known(102, train=1_020, val=1_020, test=6_149),
    "Food101": _known(101, train=75_750, test=25_250),
    "GTSRB": _known(43, train=26_640, test=12_630),
    "Imagenette": _known(10, train=9_469, val=3_925),
    "INaturalist": _known(
        10_000, "version", train=(2_686_843, "2021_train"), val=(100_000, "2021_valid")
    ),
    "KMNIST": _known(10, "train", train=(60_000, True), test=(10_000, False)),
    "LFWPeople": _known(5_749, train=9_525, test=3_708),
    "MNIST": _known(10, "train", train=(60_000, True), test=(10_000, False)),
    "OxfordIIITPet": _known(37, train=(3_680, "trainval"), test=3_669),
    "PCAM": _known(2, train=262_144, val=32_768, test=32_768),
    "Places365": _known(365, train=(1_803_460, "train-standard"), val=36_500),
    "QMNIST": _known(10, "train", train=(60_000, True), test=(60_000, False)),
    "RenderedSST2": _known(2, train=6_920, val=872, test=1_821),
    "SEMEION": (10, {"all": (1_593, {})}),
    "StanfordCars": _known(196, train=8_144, test=8_041),
    "STL10": _known(10, train=5_000, test=8_000),
    "SUN397": (397, {"all": (108_754, {})}),
    "SVHN": _known(10, train=73_257, test=26_032),
    "USPS": _known(10, "train", train=(7_291, True), test=(2_007, False)),
}


@dataclass(frozen=True, kw_only=True)
class Config(CountedOptions, SplitOptions):
    """Options of the writer."""

    name: str
    """Name of the class in torchvision.datasets."""
    root: Path
    """Folder that torchvision's class takes as `root`."""
    splits: tuple[str, ...] = ()
    """Splits of torchvision to write. Without --splits: all splits."""
    val: float | None = 0.0
    """Fraction of each class to draw for val, if the dataset lacks it."""
    test: float | None = 0.0
    """Fraction of each class to draw for test, if the dataset lacks it."""
    arguments: tuple[str, ...] = ()
    """Arguments of torchvision's class, each NAME=VALUE. Turns off the check of counts."""
    download: bool = False
    """Let torchvision download what is missing."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write the chosen splits and return the index of each."""
    classes, known = KNOWN[check_choice("name", config.name, KNOWN)]
    wanted = [check_choice("splits", split, known) for split in config.splits]
    extra = dict(map(_argument, config.arguments))
    datasets = {split: _open(config, {**known[split][1], **extra}) for split in wanted or known}
    splits: dict[str, utils.LazyImages] = {
        split: samples_of(each, config.name) for split, each in datasets.items()
    }
    highest = max(int(samples.labels.max(initial=-1)) for samples in splits.values())
    names = {_names(each) or tuple(map(str, range(highest + 1))) for each in datasets.values()}
    if len(names) > 1:
        raise ValueError(
            f"The splits {', '.join(splits)} of {config.name} have different classes. "
            "Write each split to another --out, with --splits."
        )
    counts = {split: count for split, (count, _) in known.items()}
    class_names = names.pop()
    if not extra:
        check_counts(splits, class_names, (classes, counts), config)
    if config.val or config.test:
        splits = draw_missing(splits, config.val, config.test, config.seed)
    possible = [split for split in ("all", *SPLITS) if split == "all" or split not in known]
    check_no_stale(config.out, [split for split in possible if split not in splits])
    return write_splits("torchvision", splits, class_names, config)


def samples_of(dataset: Any, name: str) -> utils.LazyImages:
    """Return the samples of a dataset of torchvision, as files if it has image files."""
    paths, labels = _files_of(dataset)
    if len(paths) == len(dataset) and all(isinstance(path, str | Path) for path in paths):
        samples = utils.ImageFiles(paths, _labels(name, labels))
        _check_inside(dataset.root, paths, name)
        return samples
    steps = utils.track(range(len(dataset)), total=len(dataset), description=f"list {name}")
    labels = [_take(dataset, i)[1] for i in steps]
    return utils.LazyImages(
        lambda i: _take(dataset, i)[0], _labels(name, labels), name=lambda i: f"{name}:{i}"
    )


def _files_of(dataset: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return possible paths and labels, by the attributes that torchvision's classes use."""
    for name in ("samples", "imgs", "_samples"):
        if hasattr(dataset, name):
            pairs = getattr(dataset, name)
            return [path for path, _ in pairs], [label for _, label in pairs]
    for name, of_labels in (
        ("_image_files", "_labels"),
        ("_images", "_labels"),
        ("data", "targets"),
    ):
        if hasattr(dataset, name) and hasattr(dataset, of_labels):
            return getattr(dataset, name), getattr(dataset, of_labels)
    return (), ()


def _check_inside(root: str | Path, paths: Sequence[str | Path], name: str) -> None:
    """Raise ValueError for a path that a list of the dataset leads out of `root`.

    Links are followed, as in a folder of images.
    """
    for path in map(PurePath, paths):
        if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
            raise ValueError(
                f"A list of {name} names {str(path)!r}, which leads out of --root. Only files "
                "below --root are read: download the dataset again, or correct the list."
            )


def _take(dataset: Any, position: int) -> tuple[Any, Any]:
    """Return image and label, with the path in place of an opened image file."""
    from PIL import ImageFile

    image, label = dataset[position]
    if isinstance(image, ImageFile.ImageFile) and image.filename:
        image.close()
        return image.filename, label
    return image, label


def _labels(name: str, labels: Sequence[Any]) -> NDArray[np.int64]:
    if any(label is None for label in labels):
        raise ValueError(f"A split of {name} has no labels. Choose other splits with --splits.")
    try:
        return np.array([operator.index(label) for label in labels], dtype=np.int64)
    except TypeError:  # int() would make 1 of 1.7 and of "1"
        other = next(label for label in labels if not hasattr(label, "__index__"))
        raise ValueError(
            f"{name} has the label {other!r:.100}, which is no class id. Leave out the --arguments "
            "that choose other targets than classes."
        ) from None


def _argument(text: str) -> tuple[str, Any]:
    """Split NAME=VALUE. The value is JSON, or else text."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(f"--arguments must be NAME=VALUE; got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _open(config: Config, arguments: Arguments) -> Any:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, config.name)
    takes = inspect.signature(kind).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    if "download" in takes or takes_any:  # False is passed too: some classes default to True
        arguments = {**arguments, "download": config.download}
    elif config.download:
        raise ValueError(
            f"torchvision cannot download {config.name}. Get it as the documentation of "
            f"torchvision.datasets.{config.name} says, and leave out --download."
        )
    try:
        return kind(str(config.root), **arguments)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file of the dataset gives any kind
        known = isinstance(error, RuntimeError | OSError | ValueError)
        advice = ", or pass --download" if arguments.get("download") is False else ""
        raise ValueError(
            f"torchvision cannot open {config.name} in {str(config.root)!r}: "
            f"{error if known else repr(error)} Check --root{advice}."
        ) from error


def _names(dataset: Any) -> tuple[str, ...]:
    for name in ("classes", "categories", "all_categories"):
        if found := getattr(dataset, name, None):
            return tuple(each if isinstance(each, str) else ", ".join(each) for each in found)
    ids = getattr(dataset, "class_to_idx", {})
    return tuple(sorted(ids, key=ids.__getitem__))


if __name__ == "__main__":
    run(__name__)
