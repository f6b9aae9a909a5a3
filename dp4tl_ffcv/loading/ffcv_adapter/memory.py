"""What ffcv calls a memory manager: how compiled code gets from an address to a sample's bytes.

ffcv's own managers build Python sets of all samples and pages of the file, and edit type objects
that numba shares (see `beton.ffcv_types`). Neither happens here.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ffcv.memory_managers.base import MemoryContext, MemoryManager
from ffcv.pipeline.compiler import Compiler
from numpy.typing import NDArray

from ...beton import BetonIndex
from ...kernels.compiled import compiled
from ..caches.base import Cache, EpochReads
from ..decoding.workspace import Workspace


@compiled()
def bytes_at(address: Any, data: Any, places: Any, ptrs: Any, sizes: Any) -> Any:
    """Return the bytes of the extent that starts at `address` of the file.

    There are none where nothing is retained, or where nothing has been read yet.
    """
    row = np.searchsorted(ptrs, address)
    if row == len(ptrs) or ptrs[row] != address or places[row] < 0:
        return data[:0]
    return data[places[row] : places[row] + sizes[row]]


class RetainedMemory(MemoryManager):
    """The bytes of the retained samples, through a cache.

    Args:
        index: of the beton.
        cache: where the bytes are.
        seed: of everything that is drawn per sample.
        make_workspace: gives the decoders what they need in an epoch.
    """

    def __init__(
        self,
        index: BetonIndex,
        cache: Cache,
        seed: int,
        make_workspace: Callable[[], Workspace],
    ) -> None:
        # Not the parent's constructor: see above.
        self.cache = cache
        self.epoch = 0
        self.window_size = 1
        """Samples whose reads are planned together, a multiple of the batch size."""
        self.make_workspace = make_workspace
        self._index = index
        self._seed = seed

    def schedule_epoch(self, batches: Sequence[NDArray[Any]]) -> "EpochMemory":
        """Return the context in which these batches are loaded."""
        counter = np.array([self._seed, self.epoch], dtype=np.uint64)
        return EpochMemory(self, batches, counter)

    def compile_reader(self) -> Callable[..., Any]:
        """Return the compiled function from a byte offset to the bytes stored there."""

        def read(address: Any, state: Any) -> Any:
            return bytes_at(address, state[0], state[1], state[2], state[3])

        return Compiler.compile(read)  # type: ignore[no-any-return]  # ffcv has no types

    @property
    def state_type(self) -> None:
        """Numba infers the type of the state; ffcv's base class asks for this property."""
        return None

    @cached_property
    def page_to_samples(self) -> dict[int, set[int]]:
        """Samples of each page, for orders written for ffcv's own managers; slow to make."""
        pages, starts, samples = self._index.page_table
        groups = np.split(samples, starts[1:-1])
        return {
            page: set(group.tolist()) for page, group in zip(pages.tolist(), groups, strict=True)
        }


class EpochMemory(MemoryContext):
    """One epoch's reads, and what its decoders work with.

    Args:
        manager: whose cache is read.
        batches: sample ids of each batch.
        counter: seed and epoch, of what is drawn per sample.
    """

    def __init__(
        self,
        manager: RetainedMemory,
        batches: Sequence[NDArray[Any]],
        counter: NDArray[np.uint64],
    ) -> None:
        self._manager = manager
        self._cache: Cache = manager.cache  # the manager's may be another before the epoch ends
        self._batches = batches
        self._counter = counter
        self._reads: EpochReads | None = None
        self._workspace: Workspace | None = None

    def __enter__(self) -> "EpochMemory":
        """Begin to read."""
        self._workspace = self._manager.make_workspace()
        order = np.concatenate(self._batches).astype(np.int64)
        self._reads = self._cache.start(order, self._manager.window_size)
        return self

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """What compiled code is given; `read` and the decoders know the order."""
        if self._reads is None or self._workspace is None:
            raise RuntimeError("`state` must be asked for inside of the context. Enter it first.")
        extents = self._cache.extents
        tables = (self._reads.data, self._reads.places, extents.ptrs, extents.sizes)
        return *tables, self._counter, *self._workspace.state

    def start_batch(self, batch: int) -> None:
        """Wait until the bytes of a batch are there."""
        if self._reads is not None:
            self._reads.wait(batch * len(self._batches[0]))

    def check(self) -> None:
        """Raise BetonError if a decoder failed on a sample."""
        if self._workspace is not None:
            self._workspace.check(self._cache.reader.path)

    def __exit__(self, *_: object) -> None:
        """Stop reading; once."""
        if self._reads is not None:
            self._reads.stop()
            self._reads = None
        self._workspace = None
