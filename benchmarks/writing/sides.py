"""The two sides of the writing benchmark; each runs in processes of its own."""

import ctypes
import gc
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv

CORES = len(os.sched_getaffinity(0))
NUM_CLASSES = 100
CHUNK = 100  # samples that a worker of ffcv's takes at a time, in its ImageNet script


@dataclass(frozen=True, kw_only=True)
class Job:
    """Images to write."""

    files: Path
    """Folder of JPEG files."""
    num_samples: int
    """Images to list; files are listed again until there are as many."""
    max_resolution: int | None = None
    decode_check: bool = False


class Side:
    """What lists image files and writes them to a beton."""

    name: str

    def list_files(self, job: Job) -> None:
        """Make the listing that is written."""
        self.job = job
        self.samples = self.listing(Repeated(sorted(job.files.iterdir()), job.num_samples))

    def write(self, out: Path) -> float:
        """Write the listed images with a worker per core; return images/s.

        `out` and what is still to be flushed of earlier files are out of the way before.
        """
        out.unlink(missing_ok=True)
        os.sync()
        started = time.perf_counter()
        self.write_samples(out)
        seconds = time.perf_counter() - started
        gc.collect()  # the other side leaves queues, which hold semaphores of the system
        return self.job.num_samples / seconds

    def settle(self) -> None:
        """Give the memory that is free back to the kernel, so that what grows next shows."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    def listing(self, paths: "Repeated") -> Any:
        """Return the samples as the side takes them."""
        raise NotImplementedError

    def write_samples(self, out: Path) -> None:
        """Write `samples` to the beton `out`."""
        raise NotImplementedError


class Stock(Side):
    """The released ffcv, used as in its ImageNet script."""

    name = f"ffcv {version('ffcv')} DatasetWriter"

    def listing(self, paths: "Repeated") -> "Photographs":
        return Photographs(paths)

    def write_samples(self, out: Path) -> None:
        # Not imported above: the process of the other side holds what it imports itself.
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        image = RGBImageField(write_mode="jpg", max_resolution=self.job.max_resolution)
        writer = DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=CORES)
        # Of few images smaller chunks, so that no worker waits long for the last one of another.
        chunk = min(CHUNK, max(1, self.job.num_samples // (8 * CORES)))
        writer.from_indexed_dataset(self.samples, chunksize=chunk)


class Ours(Side):
    """`write_beton`."""

    name = "write_beton"

    def listing(self, paths: "Repeated") -> Any:
        from dp4tl_ffcv.writing.sources import ImageFiles

        numbers = np.arange(len(paths))
        return ImageFiles(paths, class_of(numbers), identifiers=numbers)

    def write_samples(self, out: Path) -> None:
        fields = dp4tl_ffcv.image_fields(
            max_resolution=self.job.max_resolution, decode_check=self.job.decode_check
        )
        dp4tl_ffcv.write_beton(out, self.samples, fields, num_workers=CORES)

    # -- compact -----------------------------------------------------------------------------------
    def compact(
        self,
        source: Path,
        indices: NDArray[np.int64],
        out: Path,
        *,
        images: Literal["keep", "raw"] = "keep",
    ) -> float:
        """Compact the samples `indices` of a beton to `out`; return bytes/s."""
        from dp4tl_ffcv.compaction.compact import compact

        out.unlink(missing_ok=True)
        os.sync()
        started = time.perf_counter()
        compact(source, indices, out, images=images, jobs=CORES)
        return out.stat().st_size / (time.perf_counter() - started)


class Cp:
    """The command `cp`, and `sync` where what it wrote shall be on the disk."""

    name = "cp"

    def copy(self, source: Path, out: Path, *, flush: bool) -> float:
        """Copy a file as `Ours.compact` compacts one; return bytes/s."""
        out.unlink(missing_ok=True)
        os.sync()
        started = time.perf_counter()
        subprocess.run(["cp", source, out], check=True)
        if flush:
            subprocess.run(["sync", out], check=True)
        return out.stat().st_size / (time.perf_counter() - started)


class Photographs:
    """Images and labels, as `torchvision.datasets.ImageFolder` gives them to ffcv's script."""

    def __init__(self, paths: "Repeated") -> None:
        from torchvision.datasets.folder import pil_loader  # here, and not once more in each worker

        self.load = pil_loader
        numbers = np.arange(len(paths))
        self.samples = list(zip(map(str, paths), class_of(numbers).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return self.load(path), label


class Repeated(Sequence[Path]):
    """Paths, from the start again and again until there are `length`."""

    def __init__(self, paths: Sequence[Path], length: int) -> None:
        self._paths, self._length = paths, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._paths[index % len(self._paths)]


def class_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels of images by their number in the listing."""
    return numbers % NUM_CLASSES


def check_bytes(beton: Path, files: Path) -> None:
    """Check that every image is stored as the bytes of its file.

    Raises:
        RuntimeError: one is not.
    """
    index = dp4tl_ffcv.BetonIndex.open(beton)
    extents = index.extents(np.arange(index.num_samples))
    paths = sorted(files.iterdir())
    numbers = index.column("identifier")
    if len(extents) != len(numbers) or not np.array_equal(np.sort(numbers), np.arange(len(paths))):
        raise RuntimeError(f"{beton} must hold every file of {files} once; it does not")
    with beton.open("rb") as stream:
        for number, (_, start, size) in zip(numbers, extents.tolist(), strict=True):
            stream.seek(start)
            if stream.read(size) != paths[number].read_bytes():
                raise RuntimeError(f"{beton} does not hold the bytes of {paths[number]}")
