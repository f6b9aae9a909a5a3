"""The figures of the writing benchmark: what is measured, on what, and how often."""

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness.dataset import Images, prepare, prepare_files
from benchmarks.harness.measure import Row, Worker, alternate, compare, measure_all
from benchmarks.harness.tree_memory import TreePeak, tree_bytes
from benchmarks.loader.figures import alternate_epochs
from benchmarks.loader.sides import Ours as Loader
from benchmarks.loader.sides import Setting
from benchmarks.loader.sides import Stock as StockLoader
from benchmarks.writing.sides import CORES, Cp, Job, Ours, Stock, check_bytes, class_of
from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.beton import format

BENCH = "writing"
WARM_UP = 100  # images
RAW = next(mode for mode, name in format.IMAGE_MODES.items() if name == "raw")
MEMORY = Path("/dev/shm")  # files here are in memory, and have no disk to be flushed to

Sides = tuple[Worker, Worker]  # ours and stock


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    passthrough: int = 3000
    """Files of 400 pixels."""
    resize: int = 1200
    """Files of 500 pixels."""
    compact: int = 16_384
    """Images of 500 pixels in the beton that is compacted byte for byte."""
    raw: int = 10_240
    """Images of 400 pixels in the beton that is compacted to raw images."""
    peak: tuple[int, int] = (10_000, 100_000)
    """Images of 64 pixels, in a listing that repeats the files."""
    distinct: int = 256
    """Images that differ, of each kind."""
    writes: int = 5
    """Rounds of writing."""
    copies: int = 9
    """Rounds of compacting byte for byte."""
    epochs: int = 21
    """Rounds of loading."""
    peaks: int = 2
    """Rounds of writing to measure memory, each in new processes."""


QUICK = Scale(
    passthrough=600,
    resize=300,
    compact=1500,
    raw=2560,
    peak=(1000, 10_000),
    writes=2,
    copies=3,
    epochs=5,
    peaks=1,
)


@dataclass(frozen=True)
class Bench:
    """What the measurements share."""

    scale: Scale
    data: Path
    """Folder that keeps betons and image files to start from."""
    outputs: Path
    """Folder for what is written; it is deleted in the end."""
    processes: ExitStack

    @cached_property
    def sides(self) -> Sides:
        """A process of each side, for all but what memory is measured of."""
        return self.processes.enter_context(_both(self))

    @property
    def small(self) -> Path:
        """A folder of small files."""
        return prepare_files(self.images(self.scale.distinct, 64), self.data)

    def images(self, num_samples: int, long_side: int) -> Images:
        """Return JPEG images to make."""
        return Images(num_samples=num_samples, long_side=long_side, distinct=self.scale.distinct)

    @property
    def outs(self) -> tuple[Path, Path]:
        """Where our side and the other write to."""
        return self.outputs / "ours.beton", self.outputs / "other.beton"


# -- writing ---------------------------------------------------------------------------------------
def write_passthrough(bench: Bench) -> list[Row]:
    """Both of our ways in every round, so that they share the other side's measurements."""
    number = bench.scale.passthrough
    files = _in_memory(prepare_files(bench.images(number, 400), bench.data))
    job = Job(files=files, num_samples=number)
    ways = {"bytes kept": job, "decode_check": replace(job, decode_check=True)}
    (ours, stock), (out, its_out) = bench.sides, bench.outs

    def write_ours() -> list[float]:
        rates = []
        for way in ways.values():
            ours.call("list_files", way)
            rates.append(ours.call("write", out))
            check_bytes(out, files)
        return rates

    stock.call("list_files", job)
    write_its = partial(stock.call, "write", its_out)
    mine, its = alternate(write_ours, write_its, rounds=bench.scale.writes)
    params = _written(bench, job, 400)
    return [
        _row("write_passthrough", "images/s", [rates[at] for rates in mine], its, **params, how=how)
        for at, how in enumerate(ways)
    ]


def write_resize(bench: Bench) -> list[Row]:
    number = bench.scale.resize
    files = _in_memory(prepare_files(bench.images(number, 500), bench.data))
    job = Job(files=files, num_samples=number, max_resolution=400)
    for side in bench.sides:
        side.call("list_files", job)
    ours, stock = (
        partial(side.call, "write", out) for side, out in zip(bench.sides, bench.outs, strict=True)
    )
    rates = alternate(ours, stock, rounds=bench.scale.writes)
    params = _written(bench, job, 400)
    return [_row("write_resize", "images/s", *rates, **params, how="500 to 400 px")]


def write_peak_bytes(bench: Bench) -> list[Row]:
    """Memory of a process and its workers above what it held before it listed the files."""
    numbers = bench.scale.peak
    rounds = [[_peaks(bench, number) for number in numbers] for _ in range(bench.scale.peaks)]
    # Growth and size of the listing, by number of images, side and round.
    growth, listed = np.array(rounds).transpose(3, 1, 2, 0)
    row = partial(_row, "write_peak_bytes", workers=CORES, long_side=64)
    rows = []
    for number, sides, listings in zip(numbers, growth.tolist(), listed, strict=True):
        ours, other = map(median, listings.tolist())
        params = {"ours_listing_bytes": ours, "other_listing_bytes": other}
        rows.append(row("bytes", *sides, images=number, **params))
    few, many = numbers
    each = ((growth[1] - growth[0]) / (many - few)).tolist()
    return [*rows, row("bytes/image", *each, images=many, how=f"each image above {few:,}")]


def _peaks(bench: Bench, number: int) -> list[tuple[int, int]]:
    """Measure both sides in new processes."""
    job = Job(files=bench.small, num_samples=number)
    with _both(bench) as sides:
        return [_peak(side, job, bench) for side in sides]


def _peak(side: Worker, job: Job, bench: Bench) -> tuple[int, int]:
    """Return by how many bytes memory grows at most, and by how many for the listing that stays."""
    side.call("settle")
    with TreePeak(side.session) as memory:
        side.call("list_files", job)
        listed = tree_bytes(side.session) - memory.start
        side.call("write", bench.outputs / "peak.beton")
    return memory.growth, listed


# -- compacting ------------------------------------------------------------------------------------
def compact_copy(bench: Bench) -> list[Row]:
    """`compact` flushes what it writes to the disk; `cp` does so if told."""
    source = prepare(bench.images(bench.scale.compact, 500), bench.data)
    kept = Setting(beton=source).retained()
    bench.sides[0].call("compact", source, kept, bench.outs[0])  # imports; fills the page cache
    size = bench.outs[0].stat().st_size
    like = bench.outputs / "as_many_bytes"
    with source.open("rb") as stream:
        like.write_bytes(stream.read(size))
    params: dict[str, Any] = {
        "samples": BetonIndex.open(source).num_samples,
        "keep": Setting(beton=source).keep,
        "layout": "shuffled",
        "file_bytes": size,
    }

    def row(folder: Path, flush: bool, flushed: str) -> Row:
        ours = partial(bench.sides[0].call, "compact", source, kept, folder / "ours.beton")
        cp = partial(other.call, "copy", like, folder / "copy", flush=flush)
        mine, its = alternate(ours, cp, rounds=bench.scale.copies)
        about = {**params, "flush": flushed}
        return compare(BENCH, "compact_copy", "bytes/s", mine, its, Cp.name, **about)

    with Worker(Cp) as other:
        rows = [row(bench.outputs, True, "both"), row(bench.outputs, False, "compact alone")]
        if shutil.disk_usage(MEMORY).free > 3 * size:
            with TemporaryDirectory(dir=MEMORY) as folder:
                rows.append(row(Path(folder), False, "neither, into memory"))
    return rows


def compact_raw_throughput(bench: Bench) -> list[Row]:
    """Both loaders on the compacted file: what stock gains from it is due to the file alone."""
    source = prepare(bench.images(bench.scale.raw, 400), bench.data)
    stock = Setting(beton=source)
    compacted = bench.outputs / "raw.beton"
    bench.sides[0].call("compact", source, stock.retained(), compacted, images="raw")
    if np.any(BetonIndex.open(compacted).column("image")["mode"] != RAW):
        raise RuntimeError(f"{compacted} must hold raw images alone; it does not")
    raw = Setting(beton=compacted, keep=1.0)
    sides = ((Loader, raw), (StockLoader, raw), (StockLoader, stock))
    (ours, its_raw, its), loaded = alternate_epochs(sides, bench.scale.epochs)
    cache = loaded.pop("ours_cache")
    params = {
        "samples": BetonIndex.open(source).num_samples,
        "keep": stock.keep,
        "order": stock.order,
        "batch_size": stock.batch_size,
        "ours_file_bytes": compacted.stat().st_size,
        **loaded,
    }
    row = partial(compare, BENCH, "compact_raw_throughput", "images/s", other_name=StockLoader.name)
    return [
        row(ours, its, **params, ours_cache=cache, how=Loader.name),
        row(its_raw, its, **params, how="stock Loader"),
    ]


# Measurement -> the figures that come out of it.
FIGURES: dict[Callable[[Bench], list[Row]], tuple[str, ...]] = {
    write_passthrough: ("write_passthrough",),
    write_resize: ("write_resize",),
    compact_copy: ("compact_copy",),
    compact_raw_throughput: ("compact_raw_throughput",),
    write_peak_bytes: ("write_peak_bytes",),
}
NAMES = tuple(name for names in FIGURES.values() for name in names)


def measure(scale: Scale, data: Path, names: Collection[str]) -> Iterator[Row]:
    """Measure the figures called `names` on files in `data`; yield each as soon as it is known."""
    data.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="writing.", dir=data) as outputs, ExitStack() as processes:
        yield from measure_all(FIGURES, Bench(scale, data, Path(outputs), processes), names)


# -- parts -----------------------------------------------------------------------------------------
@contextmanager
def _both(bench: Bench) -> Iterator[Sides]:
    """Give a process to each side; they start at the same time, and have written once."""
    with Worker(Ours) as ours, Worker(Stock) as stock:
        for side in (ours, stock):  # late imports, and whatever else only the first use has to do
            side.call("list_files", Job(files=bench.small, num_samples=WARM_UP))
            side.call("write", bench.outputs / "warm_up.beton")
        yield ours, stock


def _in_memory(files: Path) -> Path:
    for path in files.iterdir():
        path.read_bytes()
    return files


def _written(bench: Bench, job: Job, long_side: int) -> dict[str, Any]:
    """Check that both sides wrote what they should, and return it as parameters."""
    labels = np.sort(class_of(np.arange(job.num_samples)))
    sizes = []
    for out in bench.outs:
        index = BetonIndex.open(out)
        images = index.column("image")
        sides = np.maximum(images["width"], images["height"])
        if not np.array_equal(np.sort(index.labels()), labels) or np.any(sides != long_side):
            raise RuntimeError(f"{out} does not hold the images that it should")
        sizes.append(float(index.sample_bytes().mean()))
    return {
        "images": job.num_samples,
        "workers": CORES,
        "ours_bytes_per_image": sizes[0],
        "other_bytes_per_image": sizes[1],
    }


def _row(
    figure: str, unit: str, ours: Sequence[float], other: Sequence[float], **params: Any
) -> Row:
    return compare(BENCH, figure, unit, ours, other, Stock.name, **params)
