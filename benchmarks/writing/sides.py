"""The sides of the writing benchmark. Each runs in its own process."""

import ctypes
import gc
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from benchmarks.harness.bench import CORES
from benchmarks.harness.timing import Stopwatch, Timing

NUM_CLASSES = 100
CHUNK = 100  # samples per task of ffcv's writer, as in its ImageNet script


@dataclass(frozen=True, kw_only=True)
class Job:
    files: Path
    num_samples: int
    """Images to list. The listing repeats the files."""
    max_resolution: int | None = None
    decode_check: bool = False


class Side:
    """A way to list image files and write them to a beton.

    Subclasses define `listing`, which returns the samples as they expect them, and `write_samples`.
    """

    name: str

    def list_files(self, job: Job) -> None:
        self.job = job
        files = sorted(job.files.iterdir())
        self.samples = self.listing(list(islice(cycle(files), job.num_samples)))

    def write(self, out: Path) -> Timing:
        """Write the listed images with a worker per core. Return images/s."""
        seconds = seconds_to_write(out, partial(self.write_samples, out))
        gc.collect()  # stock ffcv leaves queues, which hold system semaphores
        return seconds.rate(self.job.num_samples)

    def settle(self) -> None:
        """Return free memory to the kernel, so that later growth is visible."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


class Stock(Side):
    """The released ffcv, used as in its ImageNet script."""

    name = f"ffcv {version('ffcv')} DatasetWriter"

    def listing(self, paths: list[Path]) -> "Photographs":
        return Photographs(paths)

    def write_samples(self, out: Path) -> None:
        # Imported here, so that our process does not hold stock modules.
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        image = RGBImageField(write_mode="jpg", max_resolution=self.job.max_resolution)
        writer = DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=CORES)
        # Smaller chunks for few images, so that no worker waits long for another's last chunk.
        chunk = min(CHUNK, max(1, self.job.num_samples // (8 * CORES)))
        writer.from_indexed_dataset(self.samples, chunksize=chunk)


class Ours(Side):
    name = "write_beton"

    def listing(self, paths: list[Path]) -> Any:
        from dp4tl_ffcv.writing.sources import ImageFiles

        numbers = np.arange(len(paths))
        return ImageFiles(paths, class_of(numbers), identifiers=numbers)

    def write_samples(self, out: Path) -> None:
        fields = dp4tl_ffcv.image_fields(
            max_resolution=self.job.max_resolution, decode_check=self.job.decode_check
        )
        dp4tl_ffcv.write_beton(out, self.samples, fields, num_workers=CORES, jpeg_index=False)

    def compact(
        self, source: Path, indices: NDArray[np.int64], out: Path, **options: Any
    ) -> Timing:
        """Compact the samples `indices` of a beton to `out`. Return bytes/s."""
        options = {"num_workers": CORES, "jpeg_index": False, **options}
        compact = partial(dp4tl_ffcv.compact, source, indices, out, **options)
        return seconds_to_write(out, compact).rate(out.stat().st_size)


def cp(source: Path, out: Path, *, flush: bool) -> Timing:
    """Copy a file by `cp`, and `sync` the copy if it must reach the disk. Return bytes/s."""

    def copy() -> None:
        subprocess.run(["cp", source, out], check=True)
        if flush:
            subprocess.run(["sync", out], check=True)

    return seconds_to_write(out, copy).rate(out.stat().st_size)


class Photographs:
    """Images and labels as ffcv's script gets them from `torchvision.datasets.ImageFolder`."""

    def __init__(self, paths: list[Path]) -> None:
        from torchvision.datasets.folder import pil_loader  # here, not again in each worker

        self.load = pil_loader
        numbers = np.arange(len(paths))
        self.samples = list(zip(map(str, paths), class_of(numbers).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return self.load(path), label


def class_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return numbers % NUM_CLASSES


def seconds_to_write(out: Path, write: Callable[[], Any]) -> Timing:
    """Delete `out`, flush earlier files, and return the seconds of writing it again."""
    out.unlink(missing_ok=True)
    os.sync()
    with Stopwatch() as watch:
        write()
    return watch.timing


def check_bytes(beton: Path, files: Path) -> None:
    index = dp4tl_ffcv.BetonIndex.open(beton)
    extents = index.extents(np.arange(index.num_samples))
    paths = sorted(files.iterdir())
    numbers = index.column("identifier")
    if len(extents) != len(numbers) or not np.array_equal(np.sort(numbers), np.arange(len(paths))):
        raise RuntimeError(f"{beton} does not hold every file of {files} once")
    with beton.open("rb") as stream:
        for number, (_, start, size) in zip(numbers, extents.tolist(), strict=True):
            stream.seek(start)
            if stream.read(size) != paths[number].read_bytes():
                raise RuntimeError(f"{beton} does not hold the bytes of {paths[number]}")
