"""The two sides of the loader benchmark.

They never share a process: stock ffcv edits numba's type objects, which breaks loaders built later.
"""

import gc
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader
from ffcv.memory_managers.process_cache.schedule import compute_schedule
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.state import State
from ffcv.transforms import ToTensor
from numpy.typing import NDArray

import dp4tl_ffcv
from benchmarks.harness.dataset import retain
from benchmarks.harness.loaders import open_loader
from benchmarks.harness.memory import peak_growth, read_so_far
from benchmarks.harness.timing import Stopwatch
from dp4tl_ffcv.beton.jpeg_index_file import index_path

LEAK_SECONDS = 1.0  # time for threads to end


@dataclass(frozen=True, kw_only=True)
class Setting:
    beton: Path
    keep: float = 0.2
    batch_size: int = 256
    order: str = "random"
    from_disk: bool = False
    """Read ahead from the file (stock: `os_cache=False`) instead of using the default cache."""
    resolution: int | None = 160
    """Crop size in pixels. None loads only the first byte of each image."""
    center: bool = False
    """Crop the centre, as for evaluation, instead of random resized crops."""
    jpeg_index: bool = True
    """Index the JPEGs (ours)."""

    def retained(self) -> NDArray[np.int64]:
        return retain(dp4tl_ffcv.BetonIndex.open(self.beton).labels(), self.keep)


class Side:
    """A loader. `plan` plans the reads of an epoch and returns the most bytes held at a time."""

    name: str

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Context in which loaders skip compilation that every loader would repeat."""
        return nullcontext()

    def build(self, setting: Setting, indices: NDArray[np.int64]) -> Any:
        stock = isinstance(self, Stock)
        options = {} if stock else {"jpeg_index": setting.jpeg_index}
        return open_loader(
            setting.beton,
            image=() if setting.resolution else [FirstByte(), ToTensor()],
            resolution=setting.resolution or 0,
            center=setting.center,
            stock=stock,
            order=setting.order,
            from_disk=setting.from_disk,
            batch_size=setting.batch_size,
            indices=indices,
            **options,
        )

    # -- one loader, many epochs -------------------------------------------------------------------
    def open(self, setting: Setting) -> None:
        self.loader: Any = None  # frees the memory of an earlier loader
        gc.collect()
        self.loader = self.build(setting, setting.retained())

    def epoch(self) -> dict[str, Any]:
        """Load an epoch. The sum `labels` shows whether both sides loaded the same samples."""
        images = labels = 0
        read = read_so_far()
        with Stopwatch() as watch:
            for _, batch in self.loader:
                images += len(batch)
                labels += int(batch.sum())
        cache = getattr(self.loader, "cache", None)
        counts = {"images": images, "labels": labels, "read": read_so_far() - read}
        return {**counts, "seconds": watch.timing, "cache": cache}

    def epoch_growth(self) -> int:
        """Load an epoch and return the largest growth of resident memory, in bytes."""
        return peak_growth(self.epoch)[1]

    def leave_early(self, times: int) -> int:
        """Leave `times` epochs after their first batch, and count the threads that remain."""
        before = threading.active_count()
        for _ in range(times):
            for _batch in self.loader:
                break
        deadline = time.monotonic() + LEAK_SECONDS
        while threading.active_count() > before and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.05)
        return threading.active_count() - before

    # -- one loader, many plans --------------------------------------------------------------------
    def open_plans(self, setting: Setting) -> None:
        """Build the loader whose plans are measured. It loads nothing."""
        self.loader = None
        with self.uncompiled():
            self.loader = self.build(replace(setting, resolution=None), setting.retained())
        self.planned = 0
        gc.collect()

    def plan_next(self) -> tuple[float, int]:
        """Plan the next epoch. Return the seconds, and the largest number of bytes held."""
        started = time.perf_counter()
        held = self.plan(self.loader, self.planned)
        self.planned += 1
        return time.perf_counter() - started, held

    # -- new loaders -------------------------------------------------------------------------------
    def warm_up(self, setting: Setting) -> None:
        """Build a loader, so that the next one neither imports nor compiles."""
        with self.uncompiled():
            loader = self.build(setting, setting.retained())
            self.plan(loader, 0)
        del loader
        gc.collect()

    def construct(self, setting: Setting) -> tuple[float, int]:
        """Return seconds and memory growth from the constructor to a planned epoch."""
        indices = setting.retained()
        gc.collect()

        def construct() -> float:
            started = time.perf_counter()
            self.plan(self.build(setting, indices), 0)
            return time.perf_counter() - started

        with self.uncompiled():
            return peak_growth(construct)

    def second_loader(self, setting: Setting) -> tuple[float, float]:
        """Return seconds to the first batch of a first and of a second loader."""
        indices = setting.retained()
        seconds, kept = [], []
        for _ in range(2):
            started = time.perf_counter()
            loader = self.build(setting, indices)
            for _batch in loader:
                break
            seconds.append(time.perf_counter() - started)
            kept.append(loader)  # both stay alive, as a training and an evaluation loader do
        return seconds[0], seconds[1]


class Stock(Side):
    name = f"ffcv {version('ffcv')} Loader"

    def plan(self, loader: Any, epoch: int) -> int:
        """Draw the order and schedule the pages as ffcv's page cache does before an epoch."""
        loader.next_epoch = epoch
        order = loader.next_traversal_order()
        batches = [
            order[start : start + loader.batch_size]
            for start in range(0, len(order), loader.batch_size)
        ]
        pages_of = loader.memory_manager.sample_to_pages.__getitem__
        schedule = compute_schedule([set().union(*map(pages_of, batch)) for batch in batches])
        return int(schedule.num_slots) * int(loader.reader.page_size)  # numpy's 32 bits overflow

    def uncompiled(self) -> AbstractContextManager[Any]:
        # ffcv compiles whenever a loader is built.
        return patch.object(Loader, "generate_code", lambda _: None)


class Ours(Side):
    """`PrunedLoader`, which compiles once per process."""

    name = "PrunedLoader"

    def index(self, beton: Path) -> dict[str, Any]:
        """Index the JPEGs of a beton from scratch."""
        index_path(beton).unlink(missing_ok=True)
        with Stopwatch() as watch:
            summary = dp4tl_ffcv.index_jpegs(beton)
        return {**summary, "seconds": watch.timing}

    def first_epoch(self, setting: Setting, has_file: bool) -> dict[str, Any]:
        """Load the first epoch of a new loader, with or without a file of indexes."""
        if has_file:
            dp4tl_ffcv.index_jpegs(setting.beton)
        else:
            index_path(setting.beton).unlink(missing_ok=True)
        self.open(setting)
        return self.epoch()

    def plan(self, loader: Any, epoch: int) -> int:
        # `loader.pool_bytes` would plan a second time.
        return int(loader.memory_manager.cache.num_bytes(loader.plan_epoch(epoch)))


# ffcv requires this base class for image decoders.
class FirstByte(SimpleRGBImageDecoder):  # type: ignore[misc]  # ffcv is untyped
    """Decode an image to its first byte, so that only reading costs time."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        byte = np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=(1,), dtype=byte)
        return state, AllocationQuery((1,), byte)

    def generate_code(self) -> Callable[..., Any]:
        read = self.memory_read

        def first_byte(batch: Any, destination: Any, metadata: Any, storage: Any) -> Any:
            for row in range(len(batch)):
                destination[row, 0] = read(metadata[batch[row]]["data_ptr"], storage)[0]
            return destination[: len(batch)]

        return first_byte
