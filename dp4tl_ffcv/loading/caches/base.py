"""The interface of a cache: an array of bytes, and where in it each retained byte range starts."""

from abc import ABC, abstractmethod
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from ..reading.extents import RetainedExtents
from ..reading.file_reader import FileReader
from ..reading.plan import EpochPlan
from ..reading.reading_threads import STALLED_AFTER, ReadingThreads


class EpochReads:
    """The reads of one epoch. This class itself serves epochs whose bytes are all in memory.

    Compiled code reads the bytes from `data`. Byte range `i` starts at `data[places[i]]`, and is
    not in memory if `places[i]` is negative.
    """

    def __init__(self, data: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        self.data = data.view()
        self.data.flags.writeable = False  # one type for all caches, so that code compiles once
        self.places = places

    def wait(self, first: int) -> None:
        """Wait for the batch at position `first` of the epoch.

        Raises:
            BetonError: the file cannot be read.
            TimeoutError: no read makes progress.
        """

    def stop_waiting(self) -> None:
        """Let `wait` return in another thread, with or without an error."""

    def stop(self) -> None:
        """Stop reading and free the memory. Called once."""


class BaseCache(ABC):
    """The bytes of the retained samples, for all epochs.

    A cache may read `read_ahead` windows before they are needed. `shared_as` names the memory that
    it shares with the other processes of this machine; None for none. `timeout` is the longest time
    without progress, in seconds; None for no limit.
    """

    def __init__(
        self,
        reader: FileReader,
        extents: RetainedExtents,
        *,
        read_ahead: int,
        shared_as: str | None,
        timeout: float | None = STALLED_AFTER,
    ) -> None:
        self.reader = reader
        self.extents = extents
        self.read_ahead = read_ahead
        self.shared_as = shared_as
        self.timeout = timeout

    @abstractmethod
    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch over the samples `order`, reading `window_size` samples at a time."""

    @abstractmethod
    def num_bytes(self, plan: EpochPlan) -> int:
        """Return the memory that the bytes of an epoch take, shared memory included."""


class WindowReads(EpochReads):
    """Reads the windows of an epoch in background threads, some of them before their turn.

    Window `w` is read to `memory[w % slots * slot_bytes:]`, where `slots` is one for the window in
    use and one for each window that is read ahead.
    """

    def __init__(
        self,
        cache: BaseCache,
        plan: EpochPlan,
        memory: NDArray[np.uint8],
        places: NDArray[np.int64],
        *,
        slot_bytes: int,
        through_cache: bool,
    ) -> None:
        super().__init__(memory, places)
        self.plan = plan
        self.current = -1  # window in use
        self._cache, self._memory = cache, memory
        self._slots, self._slot_bytes = cache.read_ahead + 1, slot_bytes
        self._through_cache = through_cache
        self._tasks: dict[int, list[Future[None]]] = {}
        self._threads = ReadingThreads(cache.timeout)
        for window in range(cache.read_ahead):
            self._begin(window)

    def wait(self, first: int) -> None:
        """Wait for the batch's window, and start to read another one."""
        window = first // self.plan.window_size
        if window == self.current:
            return
        if self.current >= 0:
            self.retire(self.current)
        self.current = window
        self._begin(window + self._cache.read_ahead)
        for task in self._tasks.pop(window):
            if not self._threads.wait(task):
                at, cache = self._threads.stalled_at, self._cache
                raise cache.reader.stall(at, cache.extents, cache.timeout)
            task.result()
        starts = self.plan.row_starts
        places = self.plan.places[starts[window] : starts[window + 1]]
        self.places[self.rows(window)] = places + self._slot(window)

    def retire(self, window: int) -> None:
        """Make room for another window. Called when the next one begins."""

    def stop_waiting(self) -> None:
        """Let `wait` return in another thread."""
        self._threads.stop_waiting()

    def stop(self) -> None:
        """Cancel all requests, and wait for those that have begun."""
        if self._threads.stop():
            self.keep_memory()

    def keep_memory(self) -> None:
        """Keep the memory for a later epoch. Not called if a stalled read may still write to it."""

    def rows(self, window: int) -> NDArray[np.int64]:
        """Return the rows of the byte ranges that the window reads."""
        starts = self.plan.row_starts
        return self.plan.rows[starts[window] : starts[window + 1]]

    def _slot(self, window: int) -> int:
        return window % self._slots * self._slot_bytes

    def _begin(self, window: int) -> None:
        """Start to read a window, if there is one, into its slot."""
        if window >= self.plan.num_windows:
            return
        starts = self.plan.request_starts
        requests = self.plan.requests[starts[window] : starts[window + 1]]
        self._tasks[window] = self._cache.reader.submit(
            self._threads,
            requests,
            self._memory[self._slot(window) :],
            self._cache.extents,
            self._through_cache,
        )
