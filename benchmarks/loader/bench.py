"""Data and processes that the figures of the loader benchmark share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.harness.bench import BaseBench
from benchmarks.harness.dataset import IMAGENET_SAMPLES, Images, prepare, write_tables
from benchmarks.harness.rows import Row, alternate, compare
from benchmarks.harness.timing import Timing
from benchmarks.harness.worker import Worker, workers
from benchmarks.loader.sides import Ours, Setting, Side, Stock
from dp4tl_ffcv import BetonIndex

DETAILS = ("order", "keep", "samples", "how")
ORDERS = ("sequential", "random", "quasi_random")


@dataclass(frozen=True, kw_only=True)
class Scale:
    jpeg500: int = 6000
    """Images of 500 pixels: enough to fill 80 pages."""
    jpeg400: int = 10_240
    raw400: int = 10_240
    tables: int = IMAGENET_SAMPLES
    """Samples of the beton without images."""
    epochs: int = 31
    processes: int = 5
    """Rounds that each start new processes."""


SCALES = (Scale(),)
QUICK = (Scale(jpeg500=1500, jpeg400=2560, raw400=2560, tables=128_000, epochs=5),)

both = partial(workers, Ours, Stock)


class Bench(BaseBench[Scale]):
    @cached_property
    def readers(self) -> list[Worker]:
        return self.stack.enter_context(both())

    @property
    def small(self) -> Path:
        images = Images(num_samples=256, long_side=500, num_classes=16, distinct=32)
        return prepare(images, self.data)

    @property
    def paged(self) -> Path:
        return prepare(Images(num_samples=self.scale.jpeg500, long_side=500), self.data)

    @property
    def big(self) -> Path:
        """Beton with as many samples as ImageNet, tables only."""
        return write_tables(self.scale.tables, self.data)

    def first_epochs(self, setting: Setting, method: str) -> list[Any]:
        results = []
        for side in self.readers:
            side.call("warm_up", replace(setting, beton=self.small))
            side.call("open", setting)
            results.append(side.call(method))
        return results

    def plans(self, setting: Setting, rounds: int) -> Any:
        """Plan epochs on both sides in turn. A plan is its seconds and the bytes it holds."""
        for side in self.readers:
            side.call("open_plans", setting)
        ours, stock = (partial(side.call, "plan_next") for side in self.readers)
        return alternate(ours, stock, rounds=rounds)

    def in_new_processes(self, once: Callable[[Worker], Any]) -> tuple[list[Any], list[Any]]:
        """Call `once` for each side in new processes, in alternating order."""
        results: tuple[list[Any], list[Any]] = ([], [])
        for number in range(self.scale.processes):
            with both() as sides:
                for at in ((0, 1), (1, 0))[number % 2]:
                    results[at].append(once(sides[at]))
        return results

    def throughput(self, figure: str, images: Images, floor: float, **options: Any) -> list[Row]:
        """Compare images/s of whole epochs. `options` are those of `Setting`."""
        setting = Setting(beton=prepare(images, self.data), **options)
        sides = ((Ours, setting), (Stock, setting))
        rates, loaded = alternate_epochs(sides, self.scale.epochs)
        about = params(setting, long_side=images.long_side, resolution=setting.resolution, **loaded)
        return [row(figure, "images/s", *rates, floor=floor, **about)]


def alternate_epochs(
    sides: Sequence[tuple[type[Side], Setting]], rounds: int
) -> tuple[list[list[Timing]], dict[str, Any]]:
    """Load epochs on all sides in turn, each in its own process. The first side is ours.

    Return images/s of each side, and parameters of the row.
    """
    with workers(*(side for side, _ in sides)) as loaders:
        for worker, (_, setting) in zip(loaders, sides, strict=True):
            worker.call("open", setting)
        epochs = [partial(worker.call, "epoch") for worker in loaders]
        # Compiles, fills the page cache, and indexes each retained JPEG.
        first = [epoch() for epoch in epochs]
        loaded = alternate(*epochs, rounds=rounds)
    for name in ("images", "labels"):
        if len({epoch[name] for epoch in chain(first, *loaded)}) > 1:
            raise RuntimeError(f"the sides loaded different {name}: {first}")
    rates = [[epoch["seconds"].rate(epoch["images"]) for epoch in side] for side in loaded]
    return rates, {"images": first[0]["images"], "ours_cache": first[0]["cache"]}


def params(setting: Setting, **more: Any) -> dict[str, Any]:
    return {
        "samples": BetonIndex.open(setting.beton).num_samples,
        "keep": setting.keep,
        "order": setting.order,
        "batch_size": setting.batch_size,
        "ours_cache": "extents" if setting.from_disk else "auto",
        "other_os_cache": not setting.from_disk,
        **more,
    }


def row(figure: str, unit: str, ours: Sequence[Any], other: Sequence[Any], **more: Any) -> Row:
    return compare(figure, unit, ours, other, Stock.name, **more)


def single(figure: str, unit: str, values: Sequence[float], **more: Any) -> Row:
    ours, other = values
    return row(figure, unit, [ours], [other], **more)
