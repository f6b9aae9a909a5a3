"""Where the bytes of the retained samples are while an epoch runs.

Each cache answers two questions for compiled code: in which array the bytes lie (`data`), and where
in it each retained extent starts (`places`).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..reading.extents import RetainedExtents
from ..reading.file_reader import FileReader
from ..reading.plan import LARGEST_REQUEST, EpochPlan, plan_epoch
from ..reading.shared_memory import shared_bytes

CACHES = ("extents", "ram", "os")

# Requests that wait for the disk at the same time: SSDs and network disks need several.
READING_THREADS = 8


class EpochReads(ABC):
    """The reads of one epoch."""

    data: NDArray[np.uint8]
    places: NDArray[np.int64]

    def wait(self, first: int) -> None:  # noqa: B027  # what is in memory needs no waiting
        """Wait until the batch whose first sample is number `first` of the epoch can be decoded.

        Raises:
            BetonError: some of it could not be read.
        """

    def stop(self) -> None:  # noqa: B027
        """Stop reading and free what was held; once."""


class Cache(ABC):
    """The bytes of a selection's extents, over all epochs."""

    def __init__(self, reader: FileReader, extents: RetainedExtents) -> None:
        self.reader = reader
        self.extents = extents

    @abstractmethod
    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch over the samples `order`."""

    @abstractmethod
    def num_bytes(self, plan: EpochPlan) -> int:
        """Say how much memory of this process and its siblings an epoch takes for bytes read."""


class _InMemory(EpochReads):
    def __init__(self, data: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        self.data = _read_only(data)
        self.places = places


class OsCache(Cache):
    """A memory map: the system reads what is touched, and keeps it while there is room."""

    def __init__(self, reader: FileReader, extents: RetainedExtents) -> None:
        super().__init__(reader, extents)
        with open(reader.file, "rb", closefd=False) as stream:
            self._map = np.asarray(np.memmap(stream, dtype=np.uint8, mode="r"))
        self._places = extents.ptrs.astype(np.int64)

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:  # noqa: ARG002
        """Begin an epoch; nothing is read before it is touched."""
        self.reader.check_size(self.extents)
        return _InMemory(self._map, self._places)

    def num_bytes(self, plan: EpochPlan) -> int:  # noqa: ARG002
        """Nothing but what the operating system can take back."""
        return 0


class RamCache(Cache):
    """The retained extents packed into memory before the first epoch.

    Args:
        reader: of the beton.
        extents: what to hold.
        shared_as: a name under which the processes of this machine share one copy; None keeps one
            for this process.
    """

    def __init__(self, reader: FileReader, extents: RetainedExtents, shared_as: str | None) -> None:
        super().__init__(reader, extents)
        self._plan = plan_epoch(extents, extents.samples, max(1, len(extents.samples)))
        self._shared_as = shared_as
        self._memory: NDArray[np.uint8] | None = None

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:  # noqa: ARG002
        """Begin an epoch, after all is read if that was not done before."""
        if self._memory is None:
            self._memory = shared_bytes(self.num_bytes(self._plan), self._fill, self._shared_as)
        return _InMemory(self._memory, self._plan.places)

    def num_bytes(self, plan: EpochPlan) -> int:  # noqa: ARG002
        """Bytes of all retained extents, and of small gaps between them."""
        return int(self._plan.window_bytes.sum())

    def _fill(self, memory: NDArray[np.uint8]) -> None:
        with ThreadPoolExecutor(READING_THREADS, "dp4tl-ram") as threads:
            tasks = [
                threads.submit(self.reader.read, part, memory, self.extents)
                for part in _parts(self._plan.requests)
            ]
        for task in tasks:
            task.result()


class ExtentsCache(Cache):
    """A pool of memory into which the extents of coming batches are read, in any order.

    Args:
        reader: of the beton.
        extents: what may be read.
        read_ahead: windows that are read while another is decoded.
    """

    def __init__(self, reader: FileReader, extents: RetainedExtents, read_ahead: int) -> None:
        super().__init__(reader, extents)
        self._read_ahead = read_ahead
        self.spare: list[NDArray[np.uint8]] = []  # pools of earlier epochs

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch; its first windows are being read when this returns."""
        plan = plan_epoch(self.extents, order, window_size)
        return _PooledReads(self, plan, self._read_ahead + 1)

    def num_bytes(self, plan: EpochPlan) -> int:
        """Bytes of the pool."""
        return plan.pool_bytes(self._read_ahead + 1)


class _PooledReads(EpochReads):
    def __init__(self, cache: ExtentsCache, plan: EpochPlan, slots: int) -> None:
        self._cache = cache
        self._plan = plan
        self._slots = min(slots, max(1, plan.num_windows))
        self._slot_bytes = plan.pool_bytes(1)
        needed = self._slots * self._slot_bytes
        spare = cache.spare.pop() if cache.spare else None
        fits = spare is not None and len(spare) >= needed
        self._pool = spare if fits and spare is not None else np.empty(needed, dtype=np.uint8)
        del spare  # one that is too small
        self.data = _read_only(self._pool)
        # What is not in the pool has no place, so that it cannot be taken for something else.
        self.places = np.full(len(cache.extents.ptrs), -1, dtype=np.int64)
        self._current = -1
        self._tasks: dict[int, list[Future[None]]] = {}
        self._threads = ThreadPoolExecutor(READING_THREADS, "dp4tl-read")
        for window in range(self._slots - 1):
            self._begin(window)

    def wait(self, first: int) -> None:
        """Wait for the batch's window, and let the one that takes its predecessor's place begin."""
        window = first // self._plan.window_size
        if window == self._current:
            return
        if self._current >= 0:
            self.places[self._rows(self._current)] = -1
        self._current = window
        self._begin(window + self._slots - 1)
        for task in self._tasks.pop(window):
            task.result()
        rows = self._rows(window)
        at = slice(self._plan.row_starts[window], self._plan.row_starts[window + 1])
        self.places[rows] = self._plan.places[at] + window % self._slots * self._slot_bytes

    def stop(self) -> None:
        """Wait for the requests under way and drop the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._cache.spare = [self._pool]  # the largest need is the last one's, or close to it

    def _rows(self, window: int) -> NDArray[np.int64]:
        starts = self._plan.row_starts
        return self._plan.rows[starts[window] : starts[window + 1]]

    def _begin(self, window: int) -> None:
        """Start to read a window into its slot, which nothing uses any more."""
        if window >= self._plan.num_windows:
            return
        starts = self._plan.request_starts
        requests = self._plan.requests[starts[window] : starts[window + 1]]
        slot = self._pool[window % self._slots * self._slot_bytes :]
        self._tasks[window] = [
            self._threads.submit(self._cache.reader.read, part, slot, self._cache.extents)
            for part in _parts(requests)
        ]


def open_cache(
    name: str,
    reader: FileReader,
    extents: RetainedExtents,
    *,
    read_ahead: int,
    shared_as: str | None,
) -> Cache:
    """Open the cache called `name`, one of `CACHES`."""
    if name == "os":
        return OsCache(reader, extents)
    if name == "ram":
        return RamCache(reader, extents, shared_as)
    return ExtentsCache(reader, extents, read_ahead)


def choose_cache(extents: RetainedExtents) -> str:
    """Say which cache suits: the system's where what is retained fits, else only what is needed.

    What fits into half of the memory stays in the page cache, where all processes share it and
    nothing is copied. Beyond that, reading exactly the extents of coming batches is best.
    """
    return "os" if extents.num_bytes <= available_memory() // 2 else "extents"


def available_memory() -> int:
    """Return how many bytes are available, or the limit of this process's group if that is less."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([pages, *_limits()])


def _limits() -> Iterable[int]:
    with open("/proc/meminfo") as lines:
        yield from (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as stream:
                limit = stream.read().strip()
        except OSError:
            continue
        if limit.isdigit():  # or "max"
            yield int(limit)


def _parts(requests: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Share requests out among threads: consecutive ones, of about equal bytes."""
    ends = np.cumsum(requests[:, 1])
    total = int(ends[-1]) if len(ends) else 0
    share = max(LARGEST_REQUEST // 4, -(-total // (2 * READING_THREADS)))
    cuts = np.searchsorted(ends, np.arange(share, total, share))
    return [part for part in np.split(requests, cuts) if len(part)]


def _read_only(memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    view = memory.view()
    view.flags.writeable = False  # one type for all caches: code is compiled once
    return view
