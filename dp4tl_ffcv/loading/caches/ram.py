"""All retained bytes in memory, each read before the batch that needs it first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading.plan import EpochPlan, plan_epoch
from ..reading.shared_memory import private_bytes, shared_bytes
from .base import BaseCache, EpochReads, WindowReads

# Up to these bytes are read in the order of the file, before the first batch. In random order,
# small samples would need as many requests: 50,000 images of 32 pixels take a cloud disk of 3,000
# requests per second 17 s, and at 125 MB/s 1 s.
AT_ONCE = 256 << 20


class Cache(BaseCache):
    """Keeps all retained bytes in memory, shared between processes if `shared_as` is given.

    The memory ends with a flag for each byte range: whether it has been read. Processes that share
    the memory may read the same byte range, and then write the same bytes.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        samples, sector = self.extents.samples, self.reader.sector
        whole = plan_epoch(self.extents, samples, max(1, len(samples)), sector)
        self._places, self._end = whole.places, int(whole.window_bytes.sum())
        self._memory: NDArray[np.uint8] | None = None

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch, and start to read what no epoch or process has read yet."""
        if self._memory is None:
            size, name = self.num_bytes(), self.shared_as
            self._memory = shared_bytes(size, name) if name and size else private_bytes(size)
        memory, is_read = np.split(self._memory, [self._end])
        if is_read.all():
            return EpochReads(memory, self._places)
        is_wanted = is_read == 0
        if self._end <= AT_ONCE:
            window_size = max(window_size, len(order))
        plan = plan_epoch(
            self.extents,
            order,
            window_size,
            self.reader.sector,
            is_wanted=is_wanted,
            places=self._places,
        )
        return _FillingReads(self, plan, memory, is_read, np.where(is_wanted, -1, self._places))

    def num_bytes(self, plan: EpochPlan | None = None) -> int:  # noqa: ARG002
        """Return the bytes of the sectors of all retained samples, and of the flags."""
        return self._end + len(self._places)


class _FillingReads(WindowReads):
    def __init__(
        self,
        cache: Cache,
        plan: EpochPlan,
        memory: NDArray[np.uint8],
        is_read: NDArray[np.uint8],
        places: NDArray[np.int64],
    ) -> None:
        self._is_read = is_read
        super().__init__(cache, plan, memory, places, slot_bytes=0, through_cache=False)

    def wait(self, first: int) -> None:
        """Wait for the batch's window, and let other epochs and processes use its bytes."""
        super().wait(first)
        # The bytes come first for all processors: the reading threads have released a lock that
        # this thread took. Likewise, a process that sees a flag starts a thread that decodes.
        self._is_read[self.rows(self.current)] = 1
