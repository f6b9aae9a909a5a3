"""Write betons from a classification dataset of torchvision.datasets: `--name DTD --root data`.

ROOT is what torchvision's class takes as its root, and `--download` lets it fetch the dataset where
it can. Splits are written as torchvision has them: train and test, with val where there is one;
OxfordIIITPet's trainval is written as train, and a dataset without splits as all. What else the
class takes goes through `--arguments`, such as `partition=2` or `annotation_level=family`.

Where a dataset has image files, their bytes are kept as they are. Classes are numbered and named as
torchvision does. The identifier of an image is its index in torchvision's dataset.

The datasets: Caltech101, Caltech256, CIFAR10, CIFAR100, CLEVRClassification, Country211, DTD,
EMNIST, EuroSAT, FashionMNIST, FER2013, FGVCAircraft, Flowers102, Food101, GTSRB, Imagenette,
INaturalist, KMNIST, LFWPeople, MNIST, OxfordIIITPet, PCAM, Places365, QMNIST, RenderedSST2,
SEMEION, StanfordCars, STL10, SUN397, SVHN, USPS. (ImageNet and folders of images have writers of
their own.)
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import ImageFiles, track

from .components.common import Expected, Options, run, write_splits

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """How torchvision splits a dataset, and what the dataset holds."""

    classes: int
    splits: Mapping[str, tuple[int, Arguments]]
    """Number of images, and the arguments that choose the split."""


def _by(argument: str, classes: int, **splits: tuple[int, Any]) -> Known:
    chosen = {split: (count, {argument: value}) for split, (count, value) in splits.items()}
    return Known(classes, chosen)


def _by_train(classes: int, train: int, test: int) -> Known:
    return _by("train", classes, train=(train, True), test=(test, False))


def _by_split(classes: int, **counts: int) -> Known:
    return _by("split", classes, **{split: (count, split) for split, count in counts.items()})


def _whole(classes: int, count: int) -> Known:
    return Known(classes, {"all": (count, {})})


KNOWN = {
    "Caltech101": _whole(101, 8_677),
    "Caltech256": _whole(257, 30_607),
    "CIFAR10": _by_train(10, 50_000, 10_000),
    "CIFAR100": _by_train(100, 50_000, 10_000),
    "CLEVRClassification": _by_split(11, train=70_000, val=15_000),  # numbers of objects, to 10
    "Country211": _by(
        "split", 211, train=(31_650, "train"), val=(10_550, "valid"), test=(21_100, "test")
    ),
    "DTD": _by_split(47, train=1_880, val=1_880, test=1_880),
    "EMNIST": Known(
        47,
        {
            "train": (112_800, {"split": "balanced", "train": True}),
            "test": (18_800, {"split": "balanced", "train": False}),
        },
    ),
    "EuroSAT": _whole(10, 27_000),
    "FashionMNIST": _by_train(10, 60_000, 10_000),
    "FER2013": _by_split(7, train=28_709, test=7_178),
    "FGVCAircraft": _by_split(100, train=3_334, val=3_333, test=3_333),
    "Flowers102": _by_split(102, train=1_020, val=1_020, test=6_149),
    "Food101": _by_split(101, train=75_750, test=25_250),
    "GTSRB": _by_split(43, train=26_640, test=12_630),
    "Imagenette": _by_split(10, train=9_469, val=3_925),
    "INaturalist": _by(
        "version", 10_000, train=(2_686_843, "2021_train"), val=(100_000, "2021_valid")
    ),
    "KMNIST": _by_train(10, 60_000, 10_000),
    "LFWPeople": _by_split(5_749, train=9_525, test=3_708),
    "MNIST": _by_train(10, 60_000, 10_000),
    "OxfordIIITPet": _by("split", 37, train=(3_680, "trainval"), test=(3_669, "test")),
    "PCAM": _by_split(2, train=262_144, val=32_768, test=32_768),
    "Places365": _by("split", 365, train=(1_803_460, "train-standard"), val=(36_500, "val")),
    "QMNIST": _by_train(10, 60_000, 60_000),
    "RenderedSST2": _by_split(2, train=6_920, val=872, test=1_821),
    "SEMEION": _whole(10, 1_593),
    "StanfordCars": _by_split(196, train=8_144, test=8_041),
    "STL10": _by_split(10, train=5_000, test=8_000),
    "SUN397": _whole(397, 108_754),
    "SVHN": _by_split(10, train=73_257, test=26_032),
    "USPS": _by_train(10, 7_291, 2_007),
}


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """What to write."""

    name: str
    """Of the class in torchvision.datasets."""
    root: Path
    """What torchvision's class takes as its root."""
    splits: tuple[str, ...] = ()
    """Which to write; by default all."""
    arguments: tuple[str, ...] = ()
    """Of torchvision's class, each NAME=VALUE; counts of images are then not checked."""
    download: bool = False
    """Let torchvision fetch what is not there."""


class DatasetImages(Sequence[tuple[Any, int, int]]):
    """Samples (image, label, index) of a dataset that opens or makes its images itself."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        steps = track(range(len(dataset)), total=len(dataset), description=f"list {name}")
        self.labels = _labels(name, [_take(dataset, i)[1] for i in steps])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:  # type: ignore[override]  # one at a time
        return _take(self._dataset, position)[0], int(self.labels[position]), position

    def name(self, position: int) -> str:
        """Return `NAME:INDEX`."""
        return f"{self._name}:{position}"


def write(config: Config) -> dict[str, BetonIndex]:
    """Write the betons and return the index of each split."""
    known = KNOWN.get(config.name)
    if known is None:
        raise ValueError(
            f"`name` must be one of {', '.join(KNOWN)}; got {config.name!r}. Choose one."
        )
    wanted = config.splits or tuple(known.splits)
    for split in wanted:
        if split not in known.splits:
            raise ValueError(
                f"`splits` of {config.name} must be some of {', '.join(known.splits)}; got "
                f"{split!r}. Choose among them."
            )
    extra = dict(map(_argument, config.arguments))
    datasets = {split: _open(config, {**known.splits[split][1], **extra}) for split in wanted}
    splits = {split: samples_of(each, config.name) for split, each in datasets.items()}
    highest = max(int(samples.labels.max(initial=-1)) for samples in splits.values())
    names = {
        _names(dataset) or tuple(map(str, range(highest + 1))) for dataset in datasets.values()
    }
    if len(names) > 1:
        raise ValueError(
            f"`splits` must have the same classes; got different ones in {' and '.join(wanted)} of "
            f"{config.name}. Write one at a time, to folders of their own."
        )
    counts = {split: count for split, (count, _) in known.splits.items()}
    expected = None if extra else Expected(known.classes, counts)
    return write_splits("torchvision", splits, names.pop(), config, expected)


def samples_of(dataset: Any, name: str) -> ImageFiles | DatasetImages:
    """Return the samples of a dataset of torchvision, as files where it has some."""
    paths, labels = _files_of(dataset)
    if len(paths) != len(dataset) or not all(isinstance(path, str | Path) for path in paths):
        return DatasetImages(dataset, name)
    return ImageFiles(paths, _labels(name, labels))


def _files_of(dataset: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what may be paths and labels, under the names that torchvision has for them."""
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


def _take(dataset: Any, position: int) -> tuple[Any, Any]:
    """Return image and label; the path of an image that the dataset has opened and not changed."""
    image, label = dataset[position]
    if isinstance(image, ImageFile.ImageFile) and image.filename:
        image.close()
        return image.filename, label
    return image, label


def _labels(name: str, labels: Sequence[Any]) -> NDArray[np.int64]:
    if any(label is None for label in labels):
        raise ValueError(f"`{name}` must have labels; got none in a split. Write the others.")
    return np.array([int(label) for label in labels], dtype=np.int64)


def _argument(text: str) -> tuple[str, Any]:
    """Split NAME=VALUE; what reads as JSON is taken as such, all else is text."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise ValueError(f"`arguments` must each be NAME=VALUE; got {text!r}. Write it so.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _open(config: Config, arguments: Arguments) -> Any:
    import torchvision.datasets  # slow to import, and not needed for --help

    kind = getattr(torchvision.datasets, config.name)
    takes = inspect.signature(kind).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    if "download" in takes or takes_any:  # False too: for some it is not the default
        arguments = {**arguments, "download": config.download}
    elif config.download:
        raise ValueError(
            f"`download` must be off for {config.name}, which torchvision cannot fetch; got on. "
            "Get it as torchvision's documentation of the class says."
        )
    try:
        return kind(str(config.root), **arguments)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"`root` must hold {config.name} in the layout of torchvision.datasets; got "
            f"{str(config.root)!r} and the error: {error} Check the path"
            f"{', or pass --download' if 'download' in arguments and not config.download else ''}."
        ) from error


def _names(dataset: Any) -> tuple[str, ...]:
    """Return what the dataset calls its classes; nothing where it does not name them."""
    for name in ("classes", "categories", "all_categories"):
        if found := getattr(dataset, name, None):
            return tuple(each if isinstance(each, str) else ", ".join(each) for each in found)
    ids = getattr(dataset, "class_to_idx", {})
    return tuple(sorted(ids, key=ids.__getitem__))


if __name__ == "__main__":
    run("torchvision", Config, write, __doc__)
