"""A memory map: the system reads the pages that are touched, and keeps them while there is room."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading.plan import EpochPlan
from .base import BaseCache, EpochReads


class Cache(BaseCache):
    """Maps the file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        with open(self.reader.file, "rb", closefd=False) as stream:
            self._map = np.asarray(np.memmap(stream, dtype=np.uint8, mode="r"))
        self._places = self.extents.ptrs.astype(np.int64)

    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:  # noqa: ARG002
        """Begin an epoch. The system reads the file later, as decoders touch it."""
        self.reader.check_size(self.extents)  # reading a map beyond the end kills the process
        return EpochReads(self._map, self._places)

    def num_bytes(self, plan: EpochPlan) -> int:  # noqa: ARG002
        """Return 0: the system can take back the memory at any time."""
        return 0
