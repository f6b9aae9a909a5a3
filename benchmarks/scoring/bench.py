"""Sizes, labels and timing that the figures of the scoring benchmark share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from benchmarks.harness.bench import CORES, BaseBench
from benchmarks.harness.dataset import IMAGENET_SAMPLES, class_sizes
from benchmarks.harness.rows import Row, alternate, compare
from benchmarks.harness.timing import Stopwatch, Timing

DETAILS = ("how", "targets", "samples", "images")
CLASSES, COLUMNS = 1000, 512  # ImageNet's classes, a ResNet-18's features
PAUSE = 0.02  # seconds in which spinning threads go to sleep

Sides = dict[str, Callable[[], Any]]


class Times(NamedTuple):
    """The rounds of one side."""

    seconds: tuple[Timing, ...]
    results: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Scale:
    targets: int = 50_500
    """Target images that are assigned to class means."""
    looped: int = 100
    """Target images that the published loop assigns, per round."""
    samples: int = IMAGENET_SAMPLES
    images: int = 170
    """Images whose gradient norms are computed at once, per round."""
    backward: int = 24
    """Images with a separate backward pass each, per round."""
    arch: str = "resnet18"
    """Network whose gradient norms are computed."""
    rounds: int = 9
    """Rounds of figures that take about a second."""
    short_rounds: int = 51
    """Rounds of figures that take milliseconds."""


SCALES = (Scale(),)
QUICK = (
    Scale(
        targets=10_100,
        looped=20,
        samples=256_000,
        images=42,
        backward=6,
        rounds=5,
        short_rounds=15,
    ),
)


@dataclass
class Bench(BaseBench[Scale]):
    def __post_init__(self) -> None:
        """Let both sides use all cores."""
        torch.set_num_threads(CORES)
        numba.set_num_threads(CORES)  # importing ffcv sets it to 1

    def labels(self, *, shuffled: bool = True) -> Any:
        labels = np.repeat(np.arange(CLASSES), class_sizes(self.scale.samples, CLASSES))
        return np.random.default_rng(0).permutation(labels) if shuffled else labels


def alternate_timed(sides: Sides, rounds: int) -> dict[str, Times]:
    """Call each side once to warm up, then time all in turn."""
    for side in sides.values():
        side()
    rows = alternate(*(partial(_timed, side) for side in sides.values()), rounds=rounds)
    return {name: Times(*zip(*row, strict=True)) for name, row in zip(sides, rows, strict=True)}


def compare_pairs(figure: str, what: str, sides: Sides, rounds: int, **params: Any) -> Row:
    """Time two sides, ours first. Their results (`what`, in the error) must be equal."""
    ours, other = alternate_timed(sides, rounds).values()
    for mine, its in zip(ours.results, other.results, strict=True):
        check_same(what, mine, its)
    return compare(figure, "s", ours.seconds, other.seconds, list(sides)[1], **params)


def check_same(name: str, ours: Any, other: Any, rtol: float = 0.0) -> None:
    same = np.array_equal(ours, other)
    if not same and (not rtol or not np.allclose(ours, other, rtol=rtol, atol=0.0)):
        raise RuntimeError(f"{name} of the two sides differ")


def _timed(call: Callable[[], Any]) -> tuple[Timing, Any]:
    time.sleep(PAUSE)
    with Stopwatch() as watch:
        result = call()
    return watch.timing, result
