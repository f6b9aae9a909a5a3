"""All retained bytes in memory, read before the first epoch."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading.file_reader import READING_THREADS
from ..reading.plan import EpochPlan, plan_epoch
from ..reading.shared_memory import shared_bytes
from .base import BaseCache, EpochReads


class Cache(BaseCache):
    """Keeps all retained bytes in memory, shared between processes if `shared_as` is given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        samples = self.extents.samples
        self._plan = plan_epoch(self.extents, samples, max(1, len(samples)))
        self._memory: NDArray[np.uint8] | None = None

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:  # noqa: ARG002
        """Begin an epoch. The first epoch reads all bytes."""
        if self._memory is None:
            self._memory = shared_bytes(self.num_bytes(self._plan), self._fill, self.shared_as)
        return EpochReads(self._memory, self._plan.places)

    def num_bytes(self, plan: EpochPlan) -> int:  # noqa: ARG002
        """Return the bytes of all retained samples, and of the small gaps between them."""
        return int(self._plan.window_bytes.sum())

    def _fill(self, memory: NDArray[np.uint8]) -> None:
        with ThreadPoolExecutor(READING_THREADS, "dp4tl-ram") as threads:
            tasks = self.reader.submit(threads, self._plan.requests, memory, self.extents)
        for task in tasks:
            task.result()
