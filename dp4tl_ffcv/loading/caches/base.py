"""The interface of a cache.

A cache tells compiled code two things: the array that holds the bytes (`data`), and the position in
this array where each retained byte range starts (`places`).
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from ..reading.extents import RetainedExtents
from ..reading.file_reader import FileReader
from ..reading.plan import EpochPlan


class EpochReads:
    """The reads of one epoch. As it stands, for bytes that are all in memory."""

    def __init__(self, data: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        self.data = data.view()
        self.data.flags.writeable = False  # one type for all caches, so that code compiles once
        self.places = places

    def wait(self, first: int) -> None:
        """Wait until the batch that starts with the epoch's sample number `first` is in memory.

        Raises:
            BetonError: part of the batch could not be read.
        """

    def stop(self) -> None:
        """Stop reading and free the memory. Called once."""


class BaseCache(ABC):
    """The bytes of the retained samples, for all epochs.

    Args:
        reader: of the beton.
        extents: byte ranges of the retained samples.
        read_ahead: number of windows to read before they are needed.
        shared_as: name under which the processes of this machine share memory; None if they do not.
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
        """Begin an epoch over the samples `order`, of which `window_size` are read together."""

    @abstractmethod
    def num_bytes(self, plan: EpochPlan) -> int:
        """Return the memory that the bytes of an epoch take, shared memory included."""
