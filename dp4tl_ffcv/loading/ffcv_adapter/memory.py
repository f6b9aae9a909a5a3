"""A memory manager for ffcv: it gives compiled code the bytes at an address of the file.

ffcv's own managers build Python sets of all samples and pages of the file, and edit type objects
that numba shares (see `ffcv_import`). This one does neither.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ffcv.memory_managers.base import MemoryContext, MemoryManager
from ffcv.pipeline.compiler import Compiler
from numpy.typing import NDArray

from ...beton import BetonIndex
from ..caches.base import BaseCache, EpochReads
from ..decoding.crop_kernels import bytes_at
from ..decoding.workspace import Workspace


class RetainedMemory(MemoryManager):
    """Memory manager that reads the retained samples through a cache."""

    def __init__(
        self,
        index: BetonIndex,
        cache: BaseCache,
        seed: int,
        make_workspace: Callable[[], Workspace],
    ) -> None:
        # ffcv's constructor is not called: see above.
        self.cache = cache
        self.epoch = 0
        self.window_size = 1  # samples that are read together, a multiple of the batch size
        self.make_workspace = make_workspace
        self.seed = seed
        self._index = index

    def schedule_epoch(self, batches: Sequence[NDArray[Any]]) -> "EpochMemory":
        """Return a context manager for an epoch of these batches."""
        return EpochMemory(self, batches)

    def compile_reader(self) -> Callable[..., Any]:
        """Return the compiled function that returns the bytes at an address."""

        def read(address: Any, state: Any) -> Any:
            return bytes_at(address, state[0], state[1], state[2], state[3])

        return Compiler.compile(read)  # type: ignore[no-any-return]  # ffcv has no types

    @property
    def state_type(self) -> None:
        """None: numba infers the type. ffcv's base class asks for this property."""
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
        self._manager = manager
        self._cache: BaseCache = manager.cache  # the manager may get another cache during the epoch
        self._batches = batches
        # Decoders draw crops from these; the manager's epoch changes while this one runs.
        self._counter = np.array([manager.seed, manager.epoch], dtype=np.uint64)
        self._reads: EpochReads | None = None
        self._workspace: Workspace | None = None

    def __enter__(self) -> "EpochMemory":
        """Start reading."""
        self._workspace = self._manager.make_workspace()
        order = np.concatenate(self._batches).astype(np.int64)
        self._reads = self._cache.start(order, self._manager.window_size)
        return self

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """Arrays for compiled code, in the order that `bytes_at` and the decoders expect."""
        if self._reads is None or self._workspace is None:
            raise RuntimeError("`state` exists only within the epoch's `with` block.")
        extents = self._cache.extents
        tables = (self._reads.data, self._reads.places, extents.ptrs, extents.sizes)
        return *tables, self._counter, *self._workspace.state

    def start_batch(self, batch: int) -> None:
        """Wait until the bytes of a batch are in memory."""
        if self._reads is not None:
            self._reads.wait(batch * len(self._batches[0]))

    def check(self) -> None:
        """Raise BetonError if a decoder failed on a sample."""
        if self._workspace is not None:
            self._workspace.check(self._cache.reader.path)

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        if self._reads is not None:
            self._reads.stop()
            self._reads = None
        self._workspace = None
