"""A pool of bounded size for the coming batches, which may be in any order.

The pool has one slot for the window in use and one for each window that is read ahead.
"""

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading.available_memory import available_memory
from ..reading.extents import RetainedExtents
from ..reading.plan import EpochPlan, plan_epoch
from ..reading.shared_memory import private_bytes
from .base import BaseCache, EpochReads, WindowReads

# Largest bytes of the pages divided by the bytes retained, for which the page cache is used.
_MOST_AMPLIFICATION = 1.04


class Cache(BaseCache):
    """Reads the coming batches into a pool, which later epochs reuse."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spare: list[NDArray[np.uint8]] = []  # pools of earlier epochs
        self.through_cache = page_cache_helps(self.extents)

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch and start to read its first windows."""
        return _PooledReads(self, plan_epoch(self.extents, order, window_size, self.reader.sector))

    def num_bytes(self, plan: EpochPlan) -> int:
        """Return the bytes of the pool."""
        return plan.pool_bytes(self.read_ahead + 1)

    def take_pool(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return memory of at least this size, from an earlier epoch if possible."""
        with suppress(IndexError):  # there is none, or an epoch in another thread has taken it
            pool = self.spare.pop()
            if len(pool) >= num_bytes:
                return pool
        return private_bytes(num_bytes)


def page_cache_helps(extents: RetainedExtents) -> bool:
    """Return whether to read through the page cache, where later epochs find the bytes.

    This needs room for the pages, half of the available memory, and pages that hold little else:
    the page cache reads whole pages, direct I/O only sectors.
    """
    pages = mmap.PAGESIZE
    firsts = extents.ptrs.astype(np.int64) // pages
    ends = -(-(extents.ptrs.astype(np.int64) + extents.sizes) // pages)
    # Two byte ranges may share a page.
    firsts[1:] = np.maximum(firsts[1:], np.maximum.accumulate(ends)[:-1])
    num_bytes = int(np.maximum(ends - firsts, 0).sum()) * pages
    is_exact = num_bytes <= _MOST_AMPLIFICATION * extents.num_bytes
    return is_exact and num_bytes <= available_memory() // 2


class _PooledReads(WindowReads):
    def __init__(self, cache: Cache, plan: EpochPlan) -> None:
        slot_bytes = plan.pool_bytes(1)
        self._owner = cache
        self._pool = cache.take_pool(cache.num_bytes(plan))
        # No byte range is in the pool.
        places = np.full(len(cache.extents.ptrs), -1, dtype=np.int64)
        super().__init__(
            cache,
            plan,
            self._pool,
            places,
            slot_bytes=slot_bytes,
            through_cache=cache.through_cache,
        )

    def retire(self, window: int) -> None:
        """Take the bytes of a window out of use, before others replace them."""
        self.places[self.rows(window)] = -1

    def keep_memory(self) -> None:
        """Keep the pool for the next epoch."""
        self._owner.spare = [self._pool]  # one is enough: epochs need about the same
