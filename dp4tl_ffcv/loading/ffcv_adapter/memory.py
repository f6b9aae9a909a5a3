"""A memory manager for ffcv: gives compiled code the bytes at an address of the file.

ffcv's own managers build Python sets of all samples and pages of the file, and edit type objects
that numba shares (see `dp4tl_ffcv/ffcv_import.py`). `RetainedMemory` does neither.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.memory_managers.base import MemoryContext, MemoryManager
from ffcv.pipeline.compiler import Compiler
from numpy.typing import NDArray

from ...beton import BetonIndex
from ...beton.jpeg_index import JpegIndexes, jpeg_images
from ...beton.jpeg_index_file import IndexFile
from ...jpeg.crop import WRONG_SIZE
from ..caches.base import BaseCache
from ..decoding.crop_kernels import bytes_at, find_other_size
from ..decoding.workspace import Workspace, make_workspace
from ..index_thread import IndexThread


class RetainedMemory(MemoryManager):
    """Memory manager that reads the retained samples through a cache.

    Args:
        index: the beton.
        cache: holds the bytes of the retained samples.
        seed: seed of the random crops.
        decoders: returns the field and the decoder of each pipeline. First called after
            `compile_reader`, which ffcv needs to make the decoders.
        num_threads: number of decoding threads.
        jpeg_index: index the JPEGs.
    """

    def __init__(
        self,
        index: BetonIndex,
        cache: BaseCache,
        seed: int,
        decoders: Callable[[], Sequence[tuple[str, Any]]],
        num_threads: int,
        jpeg_index: bool,
    ) -> None:
        self.cache = cache
        self.epoch = 0
        self.window_size = 1  # samples that are read together, a multiple of the batch size
        self.seed = seed
        self._index, self._decoders = index, decoders
        self._num_threads, self._has_indexes = num_threads, jpeg_index

    @cached_property
    def indexes(self) -> JpegIndexes:
        """Indexes of the JPEGs that decoders of crops read."""
        extents = self.cache.extents
        is_jpeg = np.zeros(len(extents.ptrs), dtype=np.bool_)
        for field, decoder in self._decoders():
            if self._has_indexes and hasattr(decoder, "decoders"):
                chosen = extents.samples[jpeg_images(self._index, field)[extents.samples]]
                is_jpeg |= np.isin(extents.ptrs, self._index.column(field)["data_ptr"][chosen])
        file = IndexFile(self._index) if is_jpeg.any() else None
        return JpegIndexes(file, extents.ptrs, extents.sizes, is_jpeg)

    def new_workspace(self) -> Workspace:
        """Return scratch memory for the decoders."""
        samples, index_bytes = self.cache.extents.samples, self.indexes.largest
        return make_workspace(
            self._decoders(), self._index, samples, self._num_threads, index_bytes
        )

    def stock_images(self) -> list[NDArray[Any]]:
        """Return the metadata of the fields that ffcv's own image decoders read."""
        return [
            self._index.column(field)
            for field, decoder in self._decoders()
            if isinstance(decoder, SimpleRGBImageDecoder) and not hasattr(decoder, "decoders")
        ]

    def schedule_epoch(self, batches: Sequence[NDArray[Any]]) -> "EpochMemory":
        """Start to read an epoch of these batches; return a context manager that ends it."""
        return EpochMemory(self, batches)

    def compile_reader(self) -> Callable[..., Any]:
        """Return the compiled function that returns the bytes at an address."""

        def read(address: Any, state: Any) -> Any:
            return bytes_at(address, state[0], state[1], state[2], state[3])

        return Compiler.compile(read)  # type: ignore[no-any-return]  # ffcv has no types

    @property
    def state_type(self) -> None:
        """None, so that numba infers the type. ffcv's base class requires this property."""
        return None

    @cached_property
    def page_to_samples(self) -> dict[int, set[int]]:
        """Samples of each page, for orders written for ffcv's own managers. Slow."""
        pages, starts, samples = self._index.page_table
        groups = np.split(samples, starts[1:-1])
        return {
            page: set(group.tolist()) for page, group in zip(pages.tolist(), groups, strict=True)
        }


class EpochMemory(MemoryContext):
    """The reads and the scratch memory of one epoch."""

    def __init__(self, manager: RetainedMemory, batches: Sequence[NDArray[Any]]) -> None:
        self._cache = manager.cache  # the manager may get another cache during the epoch
        self._batch_size = len(batches[0])
        # Decoders draw crops from the seed and the epoch. The manager's epoch changes later.
        self._counter = np.array([manager.seed, manager.epoch], dtype=np.uint64)
        self._workspace = manager.new_workspace()
        self._indexes = manager.indexes
        self._batches, self._stock_images = batches, manager.stock_images()
        order = np.concatenate(batches).astype(np.int64)
        self._reads = self._cache.start(order, manager.window_size)
        self._index_thread = IndexThread(self._indexes)

    def __enter__(self) -> "EpochMemory":
        """Return the memory itself: `schedule_epoch` has started to read."""
        return self

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """Arrays for compiled code, in the order that `bytes_at` and the decoders expect."""
        extents = self._cache.extents
        tables = (self._reads.data, self._reads.places, extents.ptrs, extents.sizes)
        return *tables, self._counter, *self._workspace.state, *self._indexes.state

    def start_batch(self, batch: int) -> None:
        """Wait until the bytes of a batch are in memory.

        Raises BetonError if ffcv's own decoder would write a larger image than it has memory for.
        """
        self._reads.wait(batch * self._batch_size)
        for images in self._stock_images:
            ids = np.asarray(self._batches[batch]).astype(np.int64)
            sample = find_other_size(ids, images, *self.state[:4])
            if sample >= 0:
                self._workspace.fail(sample, WRONG_SIZE)
                self.check()

    def check(self) -> None:
        """Raise BetonError if a decoder failed on a sample."""
        self._workspace.check(self._cache.reader.path)

    def stop_waiting(self) -> None:
        """Let `start_batch` return in another thread, because no more batches are needed."""
        self._reads.stop_waiting()

    def __exit__(self, *_: object) -> None:
        """Stop reading, and save the indexes that this epoch has made. Called once."""
        self._reads.stop()
        self._index_thread.stop()
