"""A pool of bounded size for the coming batches, which may be in any order.

The pool has one slot for the window in use and one for each window that is read ahead.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading.file_reader import READING_THREADS
from ..reading.plan import EpochPlan, plan_epoch
from .base import BaseCache, EpochReads


class Cache(BaseCache):
    """Reads the coming batches into a pool, which later epochs reuse."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spare: list[NDArray[np.uint8]] = []  # pools of earlier epochs

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch and start to read its first windows."""
        return _PooledReads(self, plan_epoch(self.extents, order, window_size))

    def num_bytes(self, plan: EpochPlan) -> int:
        """Return the bytes of the pool."""
        return plan.pool_bytes(self.read_ahead + 1)

    def take_pool(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return memory of at least this size, from an earlier epoch if possible."""
        if self.spare and len(self.spare[-1]) >= num_bytes:
            return self.spare.pop()
        self.spare.clear()
        return np.empty(num_bytes, dtype=np.uint8)


class _PooledReads(EpochReads):
    def __init__(self, cache: Cache, plan: EpochPlan) -> None:
        self._cache = cache
        self._plan = plan
        self._slots = min(cache.read_ahead + 1, max(1, plan.num_windows))
        self._slot_bytes = plan.pool_bytes(1)
        self._pool = cache.take_pool(self._slots * self._slot_bytes)
        # -1 marks byte ranges that are not in the pool.
        super().__init__(self._pool, np.full(len(cache.extents.ptrs), -1, dtype=np.int64))
        self._current = -1
        self._tasks: dict[int, list[Future[None]]] = {}
        self._threads = ThreadPoolExecutor(READING_THREADS, "dp4tl-read")
        for window in range(self._slots - 1):
            self._begin(window)

    def wait(self, first: int) -> None:
        """Wait for the batch's window, and start to read another into the slot it frees."""
        window = first // self._plan.window_size
        if window == self._current:
            return
        if self._current >= 0:
            self.places[self._rows(self._current)] = -1
        self._current = window
        self._begin(window + self._slots - 1)
        for task in self._tasks.pop(window):
            task.result()
        at = slice(self._plan.row_starts[window], self._plan.row_starts[window + 1])
        slot_at = window % self._slots * self._slot_bytes
        self.places[self._rows(window)] = self._plan.places[at] + slot_at

    def stop(self) -> None:
        """Cancel all requests, and wait for those that have begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._cache.spare = [self._pool]  # one is enough: epochs need about the same

    def _rows(self, window: int) -> NDArray[np.int64]:
        starts = self._plan.row_starts
        return self._plan.rows[starts[window] : starts[window + 1]]

    def _begin(self, window: int) -> None:
        """Start to read a window, if there is one, into its slot."""
        if window >= self._plan.num_windows:
            return
        starts = self._plan.request_starts
        requests = self._plan.requests[starts[window] : starts[window + 1]]
        slot = self._pool[window % self._slots * self._slot_bytes :]
        reader, extents = self._cache.reader, self._cache.extents
        self._tasks[window] = reader.submit(self._threads, requests, slot, extents)
