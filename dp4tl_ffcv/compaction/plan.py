"""Plan a compacted beton: the byte ranges of the retained samples, and their new places."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton.format import ALLOCATION, LARGEST_PAGE
from ..beton.index import BetonIndex
from ..errors import BetonError
from .pointers import Pointer, find_pointers


@dataclass(frozen=True, slots=True)
class Retained:
    """The samples of a new beton, in its order."""

    metadata: NDArray[Any]
    """Records `(M,)`, a copy that may be changed."""
    extents: NDArray[Any]
    """Byte ranges `(R,)`: `sample_id` in the new order, `ptr` (byte offset in the source), `size`.
    """
    starts: NDArray[np.int64]
    """Sample i has the rows `starts[i]` to `starts[i + 1]` of `extents`."""
    pointers: tuple[Pointer, ...]

    def with_columns(self, dtype: np.dtype[Any]) -> "Retained":
        """Return a copy whose metadata has only the columns of `dtype`."""
        if dtype == self.metadata.dtype:
            return self
        metadata = np.zeros(len(self.metadata), dtype=dtype)
        for column in dtype.names or ():
            metadata[column] = self.metadata[column]
        return replace(self, metadata=metadata)

    def rooms(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes of each sample `(M,)` if the extents have `sizes` `(R,)`."""
        return np.diff(_ends(sizes)[self.starts])


@dataclass(frozen=True, slots=True)
class Placement:
    """Places of the samples in the new file. No sample crosses a page."""

    page_size: int
    places: NDArray[np.int64]
    """First byte of each sample `(M,)`."""
    table_at: int
    """First byte of the allocation table."""

    def file_size(self, num_extents: int) -> int:
        """Return the bytes of the whole beton."""
        return self.table_at + num_extents * ALLOCATION.itemsize

    def extent_places(self, retained: Retained, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first byte of each extent `(R,)`."""
        ends = _ends(sizes)
        shifts = self.places - ends[retained.starts[:-1]]
        places: NDArray[np.int64] = ends[:-1] + np.repeat(shifts, np.diff(retained.starts))
        return places


def retain(index: BetonIndex, order: NDArray[np.int64]) -> Retained:
    """Collect the metadata, byte ranges and pointers of the samples `order`, in that order."""
    position = np.zeros(len(index), dtype=np.int64)
    position[order] = np.arange(len(order))
    extents = index.extents(order)
    extents["sample_id"] = position[extents["sample_id"]]
    # Where several extents of a sample have the same offset, empty ones come first.
    extents = extents[np.lexsort((extents["size"], extents["ptr"], extents["sample_id"]))]
    counts = np.bincount(extents["sample_id"].astype(np.int64), minlength=len(order))
    starts = np.concatenate(([0], np.cumsum(counts)))
    # Copy records as plain bytes: indexing them by field would leave their padding undefined.
    records = index.metadata.view(np.dtype((np.void, index.metadata.dtype.itemsize)))
    metadata = records[order].view(index.metadata.dtype)
    pointers = tuple(find_pointers(index, metadata, extents, starts))
    return Retained(metadata, extents, starts, pointers)


def place(rooms: NDArray[np.int64], tables: int, page_size: int) -> Placement:
    """Place samples of `rooms` bytes `(M,)` after `tables` bytes, each within a page.

    The page size is doubled until the largest sample fits.
    """
    largest = int(rooms.max(initial=0))
    while page_size < largest:
        page_size *= 2
    if page_size > LARGEST_PAGE:
        raise BetonError(
            f"a sample has {largest} bytes, but the largest page has {LARGEST_PAGE}. Select other "
            "samples."
        )
    ends = np.cumsum(rooms)
    places = ends - rooms
    page = -(-tables // page_size) * page_size
    first = 0
    while largest and first < len(rooms):
        start = int(places[first])
        end = int(np.searchsorted(ends, start + page_size, side="right"))
        places[first:end] += page - start
        first, page = end, page + page_size
    return Placement(page_size, places, page)


def _ends(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, and the end of each extent if they follow each other without gaps."""
    # ffcv identifies an extent by its start: an empty one gets a byte, so that no two share one.
    return np.concatenate(([0], np.cumsum(np.maximum(sizes, 1))))
