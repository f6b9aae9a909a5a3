"""The figures of the loader benchmark: what is measured, on what, and how often."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.dataset import IMAGENET_SAMPLES, Images, prepare, write_tables
from benchmarks.harness.measure import Row, Worker, alternate, compare, measure_all
from benchmarks.loader.sides import Ours, Setting, Side, Stock
from dp4tl_ffcv import BetonIndex

BENCH = "loader"
ORDERS = ("sequential", "random", "quasi_random")
KEEPS = (1.0, 0.1)  # of planning
PLANNED_EPOCHS = 5
EARLY_BREAKS = 5

Sides = tuple[Worker, Worker]  # ours and stock


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    jpeg500: int = 6000
    """Images of 500 pixels: enough to fill 80 pages."""
    jpeg400: int = 10_240
    raw400: int = 10_240
    tables: int = IMAGENET_SAMPLES
    """Samples of the file that consists of tables."""
    epochs: int = 31
    """Rounds of throughput."""
    processes: int = 3
    """Rounds of what takes a new process each."""


QUICK = Scale(jpeg500=1500, jpeg400=2560, raw400=2560, tables=128_000, epochs=5, processes=1)


@dataclass(frozen=True)
class Bench:
    """What the measurements share: the data, and a pair of processes that is started once."""

    scale: Scale
    data: Path
    """Folder that keeps the betons."""
    processes: ExitStack

    @cached_property
    def readers(self) -> Sides:
        """A process of each side, for what compiles next to nothing."""
        return self.processes.enter_context(_both())

    @property
    def small(self) -> Path:
        """A beton to warm up on."""
        images = Images(num_samples=256, long_side=500, num_classes=16, distinct=32)
        return prepare(images, self.data)

    @property
    def paged(self) -> Path:
        """A beton of many pages."""
        return prepare(Images(num_samples=self.scale.jpeg500, long_side=500), self.data)

    @property
    def big(self) -> Path:
        """A beton of as many samples as ImageNet, tables only."""
        return write_tables(self.scale.tables, self.data)


# -- bytes and memory ------------------------------------------------------------------------------
def read_amplification(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.paged, batch_size=128, from_disk=True, resolution=None)
    extents = BetonIndex.open(setting.beton).sample_bytes()
    retained = int(extents[setting.retained()].sum())
    read = [epoch["read"] / retained for epoch in _first_epochs(bench, setting, "epoch")]
    params = _params(setting, retained_bytes=retained, file_bytes=int(extents.sum()))
    return [_row("read_amplification", "bytes read / bytes retained", *_single(read), **params)]


def pool_bytes(bench: Bench) -> list[Row]:
    rows = []
    for order in ORDERS:
        setting = Setting(beton=bench.big, keep=0.5, batch_size=1024, order=order, from_disk=True)
        (mine,), (its,) = _plans(bench, setting, rounds=1)
        params = _params(setting, how="planned")
        rows.append(_row("pool_bytes", "bytes", *_single((mine[1], its[1])), **params))
    setting = Setting(beton=bench.paged, keep=0.5, batch_size=64, from_disk=True, resolution=None)
    grown = _first_epochs(bench, setting, "epoch_growth")
    params = _params(setting, how="growth of resident memory in an epoch")
    return [*rows, _row("pool_bytes", "bytes", *_single(grown), **params)]


def construct(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.big, batch_size=1024, from_disk=True)
    small = replace(setting, beton=bench.small)

    def once(side: Worker) -> Any:
        side.call("warm_up", small)
        return side.call("construct", setting)

    pairs = _in_new_processes(once, bench.scale.processes)
    params = _params(setting, includes="constructor, order, plan of the first epoch's reads")
    return [
        _row(figure, unit, *([result[column] for result in side] for side in pairs), **params)
        for column, (figure, unit) in enumerate(
            [("construct_seconds", "s"), ("construct_bytes", "bytes")]
        )
    ]


def planning_seconds(bench: Bench) -> list[Row]:
    rows = []
    for order in ORDERS[1:]:
        whole: list[float] = []
        for keep in KEEPS:
            setting = Setting(
                beton=bench.big, batch_size=1024, keep=keep, order=order, from_disk=True
            )
            plans = _plans(bench, setting, PLANNED_EPOCHS)
            seconds = [[plan[0] for plan in side] for side in plans]
            medians = [median(side) for side in seconds]
            whole = whole or medians
            ours, other = (few / all_ for few, all_ in zip(medians, whole, strict=True))
            params = _params(setting, ours_of_keep_1=ours, other_of_keep_1=other)
            rows.append(_row("planning_seconds", "s", *seconds, **params))
    return rows


# -- time ------------------------------------------------------------------------------------------
def jpeg_rrc_throughput(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.jpeg400, long_side=400)
    return _throughput("jpeg_rrc_throughput", images, bench)


def raw_rrc_throughput(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.raw400, long_side=400, mode="raw")
    return _throughput("raw_rrc_throughput", images, bench)


def _throughput(figure: str, images: Images, bench: Bench) -> list[Row]:
    setting = Setting(beton=prepare(images, bench.data))
    sides = ((Ours, setting), (Stock, setting))
    rates, loaded = alternate_epochs(sides, bench.scale.epochs)
    return [_row(figure, "images/s", *rates, **_params(setting, **loaded))]


def alternate_epochs(
    sides: Sequence[tuple[type[Side], Setting]], rounds: int
) -> tuple[list[list[float]], dict[str, Any]]:
    """Load epochs on all sides in turn, each in a process of its own; the first side is ours.

    Returns:
        images/s of each side, and the parameters that are known only now.

    Raises:
        RuntimeError: the sides loaded different samples.
    """
    with ExitStack() as processes:
        workers = [processes.enter_context(Worker(side)) for side, _ in sides]
        for worker, (_, setting) in zip(workers, sides, strict=True):
            worker.call("open", setting)
        epochs = [partial(worker.call, "epoch") for worker in workers]
        first = [epoch() for epoch in epochs]  # compiles, and fills the page cache
        loaded = alternate(*epochs, rounds=rounds)
        cache = workers[0].call("attribute", "cache")
    for name in ("images", "labels"):
        if len({epoch[name] for epoch in chain(first, *loaded)}) > 1:
            raise RuntimeError(f"the sides differ in the {name} they loaded: {first}")
    rates = [[epoch["images"] / epoch["seconds"] for epoch in side] for side in loaded]
    return rates, {"images": first[0]["images"], "ours_cache": cache}


def second_loader_seconds(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.small, keep=0.5, batch_size=64)

    def once(side: Worker) -> Any:
        return side.call("second_loader", setting)[1]

    pairs = _in_new_processes(once, bench.scale.processes)
    return [_row("second_loader_seconds", "s", *pairs, **_params(setting))]


def leaked_threads(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.small, keep=1.0, batch_size=8, from_disk=True, resolution=None)
    left = _first_epochs(bench, setting, "leave_early", EARLY_BREAKS)
    params = _params(setting, breaks=EARLY_BREAKS)
    return [_row("leaked_threads", "threads", *_single(left), **params)]


# Measurement -> the figures that come out of it. Leaked threads would stay beside what follows in
# their process, so they come last.
FIGURES: dict[Callable[[Bench], list[Row]], tuple[str, ...]] = {
    read_amplification: ("read_amplification",),
    pool_bytes: ("pool_bytes",),
    construct: ("construct_seconds", "construct_bytes"),
    planning_seconds: ("planning_seconds",),
    second_loader_seconds: ("second_loader_seconds",),
    jpeg_rrc_throughput: ("jpeg_rrc_throughput",),
    raw_rrc_throughput: ("raw_rrc_throughput",),
    leaked_threads: ("leaked_threads",),
}
NAMES = tuple(name for names in FIGURES.values() for name in names)


def measure(scale: Scale, data: Path, names: Collection[str]) -> Iterator[Row]:
    """Measure the figures called `names` on betons in `data`; yield each as soon as it is known."""
    with ExitStack() as processes:
        yield from measure_all(FIGURES, Bench(scale, data, processes), names)


# -- parts -----------------------------------------------------------------------------------------
@contextmanager
def _both() -> Iterator[Sides]:
    """Give a process to each side; they start at the same time."""
    with Worker(Ours) as ours, Worker(Stock) as stock:
        yield ours.wait(), stock.wait()


def _in_new_processes(once: Callable[[Worker], Any], rounds: int) -> tuple[list[Any], list[Any]]:
    """Measure each side in a new process in every round; who comes first alternates."""
    results: tuple[list[Any], list[Any]] = ([], [])
    for number in range(rounds):
        with _both() as sides:
            for at in ((0, 1), (1, 0))[number % 2]:
                results[at].append(once(sides[at]))
    return results


def _first_epochs(bench: Bench, setting: Setting, method: str, *args: Any) -> list[Any]:
    """Call `method` of a new loader on each side."""
    results = []
    for side in bench.readers:
        side.call("warm_up", replace(setting, beton=bench.small))
        side.call("open", setting)
        results.append(side.call(method, *args))
    return results


def _plans(bench: Bench, setting: Setting, rounds: int) -> Any:
    """Plan epochs on both sides in turn; a plan is its seconds and bytes of samples held."""
    for side in bench.readers:
        side.call("open_plans", setting)
    ours, stock = (partial(side.call, "plan_next") for side in bench.readers)
    return alternate(ours, stock, rounds=rounds)


def _params(setting: Setting, **more: Any) -> dict[str, Any]:
    samples = BetonIndex.open(setting.beton).num_samples
    return {
        "samples": samples,
        "keep": setting.keep,
        "order": setting.order,
        "batch_size": setting.batch_size,
        "ours_cache": "extents" if setting.from_disk else "auto",
        "other_os_cache": not setting.from_disk,
        **more,
    }


def _single(values: Sequence[float]) -> tuple[list[float], list[float]]:
    ours, other = values
    return [ours], [other]


def _row(
    figure: str, unit: str, ours: Sequence[float], other: Sequence[float], **params: Any
) -> Row:
    return compare(BENCH, figure, unit, ours, other, Stock.name, **params)
