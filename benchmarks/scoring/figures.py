"""The figures of the scoring benchmark: what is measured, on what, and how often."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks.harness.dataset import IMAGENET_SAMPLES, class_sizes, write_tables
from benchmarks.harness.measure import Row, alternate, compare, measure_all
from benchmarks.scoring.sides import (
    CORES,
    PRODUCTS,
    READERS,
    check_nearest,
    check_same,
    features_file,
    loop_gradient_norms,
    loop_nearest,
    nearest_by_product,
    open_features,
    targets_and_means,
    timed,
    torch_members,
)
from dp4tl_ffcv import BetonIndex, Selection, class_means, feature_mapping
from dp4tl_ffcv.kernels import class_histogram, class_members, nearest_mean
from dp4tl_ffcv.scoring.gradients import gradient_norms

BENCH = "scoring"
CLASSES, COLUMNS = 1000, 512  # ImageNet's classes, a ResNet-18's features
KEEP = 0.9
GRAND_SIDE = 64  # pixels
TOLERANCE = 1e-3  # of gradient norms: sums of millions of products in single precision

Sides = dict[str, Callable[[], Any]]
Times = list[tuple[float, Any]]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    targets: int = 50_500
    """Target images that are assigned to class means."""
    looped: int = 100
    """Of these, images of the published loop in each round."""
    samples: int = IMAGENET_SAMPLES
    """Samples of the source."""
    images: int = 170
    """Images whose gradients' norms are taken at once, in each round."""
    backward: int = 24
    """Of these, images that have a backward pass of their own in each round."""
    rounds: int = 9
    """Rounds of what takes a second or so."""
    short_rounds: int = 51
    """Rounds of what takes milliseconds."""


QUICK = Scale(
    targets=10_100,
    looped=20,
    samples=256_000,
    images=42,
    backward=6,
    rounds=3,
    short_rounds=15,
)


@dataclass(frozen=True)
class Bench:
    """What the measurements share."""

    scale: Scale
    data: Path
    """Folder that keeps features and tables."""

    def labels(self, *, shuffled: bool = True) -> Any:
        """Return class ids of ImageNet's frequencies, `(samples,)`."""
        labels = np.repeat(np.arange(CLASSES), class_sizes(self.scale.samples, CLASSES))
        return np.random.default_rng(0).permutation(labels) if shuffled else labels


# -- feature mapping -------------------------------------------------------------------------------
def fm_assign(bench: Bench) -> list[Row]:
    """Measure ours once, and against both: the published loop, and the bare products."""
    scale = bench.scale
    features, means = targets_and_means(scale.targets, CLASSES, COLUMNS)
    single, part = means.astype(np.float32), features[: scale.looped]
    products = np.empty((scale.targets, CLASSES), dtype=np.float32)
    tensors = torch.from_numpy(part), torch.from_numpy(single)
    sides: Sides = {
        "ours": lambda: feature_mapping(features, means).scores,
        "loop": lambda: loop_nearest(*tensors),
        **{way: partial(take, features, single, products) for way, take in PRODUCTS.items()},
    }
    nearest, _ = nearest_mean(features, means)
    for way in PRODUCTS:
        products[:] = np.nan
        sides[way]()
        check_nearest(features, means, nearest, nearest_by_product(products, single))
    times = _alternate(sides, scale.rounds)
    for (_, votes), (_, looped) in zip(times["ours"], times["loop"], strict=True):
        check_same("the votes", votes, np.bincount(nearest, minlength=CLASSES))
        check_nearest(part, means, nearest[: scale.looped], looped)
    ours = _seconds(times["ours"])
    loop = [second * scale.targets / scale.looped for second in _seconds(times["loop"])]
    best, seconds = _fastest(times, PRODUCTS)
    params = {
        "targets": scale.targets,
        "classes": CLASSES,
        "columns": COLUMNS,
        "threads": CORES,
        "ours_includes": "votes, soft votes (tie key), near ties in float64",
        "bounded_by": "the matrix product",
    }
    operations = 2 * scale.targets * CLASSES * COLUMNS
    return [
        _row(
            "fm_assign", "s", ours, loop, "published loop", **params,
            other_images=scale.looped, how=f"loop: {scale.looped} images, extrapolated",
        ),
        _row(
            "fm_assign_roofline", "s", ours, seconds, best, **params,
            other_flop_per_s=operations / median(seconds),
            how="against the fastest bare float32 product",
        ),
    ]  # fmt: skip


# -- classes ---------------------------------------------------------------------------------------
def means_of_classes(bench: Bench) -> list[Row]:
    """Both map the file anew in every round; its pages are in memory."""
    path, labels = features_file(bench.scale.samples, COLUMNS, bench.data), bench.labels()
    size = open_features(path).nbytes
    sides: Sides = {"ours": lambda: class_means(open_features(path), labels, CLASSES)}
    for way, read in READERS.items():
        sides[way] = partial(lambda read: read(open_features(path)), read)
    times = _alternate(sides, bench.scale.rounds)
    counts = np.bincount(labels, minlength=CLASSES)
    features = open_features(path)
    for column in (0, COLUMNS - 1):
        sums = np.bincount(labels, features[:, column].astype(np.float64), minlength=CLASSES)
        for _, means in times["ours"]:
            check_same("the means", means[:, column], sums / counts)
    totals = [[total for _, total in times[way]] for way in READERS]
    check_same("the bytes read", totals[0], totals[1])
    rates = {way: [size / second for second in _seconds(side)] for way, side in times.items()}
    params = {
        "samples": bench.scale.samples,
        "columns": COLUMNS,
        "dtype": "float16",
        "threads": CORES,
        "file_bytes": size,
        "pages": "in memory, mapped anew in every round",
        "bounded_by": "reading rows that lie apart, and widening them to float64",
    }
    return [
        _row("class_means", "bytes/s", rates["ours"], rates[way], way, **params) for way in READERS
    ]


def histogram(bench: Bench) -> list[Row]:
    rows = []
    for shuffled in (True, False):
        labels = bench.labels(shuffled=shuffled)
        sides: Sides = {
            "ours": partial(class_histogram, labels, CLASSES),
            "numpy.bincount": partial(np.bincount, labels, minlength=CLASSES),
        }
        times = _alternate(sides, bench.scale.short_rounds)
        _check_pairs("the counts", times)
        params = {
            "samples": len(labels),
            "threads": CORES,
            "how": "shuffled" if shuffled else "in order of the classes",
            "bounded_by": "one addition in memory per label",
        }
        rows.append(_paired("histogram", times, **params))
    return rows


def select_indices(bench: Bench) -> list[Row]:
    """From labels in memory, and from a beton's tables to a whole selection."""
    index = BetonIndex.open(write_tables(bench.scale.samples, bench.data))
    classes = np.random.default_rng(0).permutation(CLASSES)[: round(KEEP * CLASSES)]
    wanted, labels = torch.from_numpy(classes), index.labels()
    tensor, _ = torch.from_numpy(labels), index.fingerprint

    def members() -> Any:
        retained = np.zeros(CLASSES, dtype=np.bool_)
        retained[classes] = True
        return class_members(labels, retained)

    from_labels: Sides = {
        "ours": members,
        "torch.isin, nonzero": partial(torch_members, tensor, wanted),
    }
    from_tables: Sides = {
        "ours": lambda: Selection.of_classes(index, classes).indices,
        "torch.isin, nonzero": lambda: torch_members(torch.from_numpy(index.labels()), wanted),
    }
    rows = []
    for how, sides, bound in (
        ("from labels", from_labels, "reading the labels twice and writing the ids"),
        ("from a beton's tables to a Selection", from_tables, "gathering the labels, twice"),
    ):
        times = _alternate(sides, bench.scale.short_rounds)
        _check_pairs("the samples", times)
        params = {"samples": len(labels), "keep": KEEP, "classes": CLASSES, "threads": CORES}
        rows.append(_paired("select_indices", times, **params, how=how, bounded_by=bound))
    return rows


# -- gradients -------------------------------------------------------------------------------------
def grand(bench: Bench) -> list[Row]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=CLASSES).eval()
    count = bench.scale.images, bench.scale.backward
    images = torch.randn(count[0], 3, GRAND_SIDE, GRAND_SIDE)
    labels = torch.randint(CLASSES, (count[0],))
    few = images[: count[1]], labels[: count[1]]
    sides: Sides = {
        "ours": lambda: gradient_norms(model, [(images, labels)]),
        "one backward per image": lambda: loop_gradient_norms(model, *few),
    }
    times = _alternate(sides, bench.scale.rounds)
    for (_, mine), (_, its) in zip(*times.values(), strict=True):
        check_same("the norms", mine[: count[1]], its, rtol=TOLERANCE)
    ours, other = (
        [number / second for second in _seconds(side)]
        for number, side in zip(count, times.values(), strict=True)
    )
    params = {
        "images": count[0],
        "other_images": count[1],
        "model": f"resnet18, {CLASSES} classes",
        "how": f"{GRAND_SIDE} px, on the processor",
        "threads": CORES,
        "bounded_by": "forward and backward pass of the batch, and products for the norms",
    }
    return [_row("grand", "images/s", ours, other, "one backward per image", **params)]


# Measurement -> the figures that come out of it.
FIGURES: dict[Callable[[Bench], list[Row]], tuple[str, ...]] = {
    fm_assign: ("fm_assign", "fm_assign_roofline"),
    means_of_classes: ("class_means",),
    histogram: ("histogram",),
    select_indices: ("select_indices",),
    grand: ("grand",),
}
NAMES = tuple(name for names in FIGURES.values() for name in names)


def measure(scale: Scale, data: Path, names: Collection[str]) -> Iterator[Row]:
    """Measure the figures called `names` on files in `data`; yield each as soon as it is known."""
    data.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(CORES)
    yield from measure_all(FIGURES, Bench(scale, data), names)


# -- parts -----------------------------------------------------------------------------------------
def _alternate(sides: Sides, rounds: int) -> dict[str, Times]:
    """Call each side once, then time them in turn; seconds and results of each side."""
    for side in sides.values():
        side()  # compiles, and brings pages into memory
    times = alternate(*(partial(timed, side) for side in sides.values()), rounds=rounds)
    return dict(zip(sides, times, strict=True))


def _seconds(times: Times) -> list[float]:
    return [second for second, _ in times]


def _fastest(times: Mapping[str, Times], ways: Collection[str]) -> tuple[str, list[float]]:
    """Return the way with the least median, and its seconds."""
    best = min(ways, key=lambda way: median(_seconds(times[way])))
    return best, _seconds(times[best])


def _check_pairs(name: str, times: Mapping[str, Times]) -> None:
    for (_, mine), (_, its) in zip(*times.values(), strict=True):
        check_same(name, mine, its)


def _paired(figure: str, times: Mapping[str, Times], **params: Any) -> Row:
    _, other = times
    ours, its = map(_seconds, times.values())
    return _row(figure, "s", ours, its, other, **params)


def _row(
    figure: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    other_name: str,
    **params: Any,
) -> Row:
    return compare(BENCH, figure, unit, ours, other, other_name, **params)
