"""The interface of a cache: an array of bytes, and where in it each retained byte range starts."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ..reading.extents import RetainedExtents
from ..reading.file_reader import FileReader
from ..reading.plan import EpochPlan


class EpochReads:
    """The reads of one epoch. This class itself serves caches whose bytes are all in memory.

    Compiled code reads the bytes from `data`. Byte range `i` starts at `data[places[i]]`.
    """

    def __init__(self, data: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        self.data = data.view()
        self.data.flags.writeable = False  # one type for all caches, so that code compiles once
        self.places = places

    def wait(self, first: int) -> None:
        """Wait for the batch at position `first` of the epoch, or raise BetonError."""

    def stop(self) -> None:
        """Stop reading and free the memory. Called once."""


class BaseCache(ABC):
    """The bytes of the retained samples, for all epochs.

    A cache may read `read_ahead` windows before they are needed. `shared_as` names the memory that
    it shares with the other processes of this machine; None for none.
    """

    def __init__(
        self,
        reader: FileReader,
        extents: RetainedExtents,
        *,
        read_ahead: int,
        shared_as: str | None,
    ) -> None:
        self.reader = reader
        self.extents = extents
        self.read_ahead = read_ahead
        self.shared_as = shared_as

    @abstractmethod
    def start(self, order: NDArray[np.int64], window_size: int) -> EpochReads:
        """Begin an epoch over the samples `order`, reading `window_size` samples at a time."""

    @abstractmethod
    def num_bytes(self, plan: EpochPlan) -> int:
        """Return the memory that the bytes of an epoch take, shared memory included."""
