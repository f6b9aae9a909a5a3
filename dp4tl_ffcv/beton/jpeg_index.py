"""The indexes of a beton's JPEGs, in memory.

With the index of a JPEG (see `jpeg/mcu_index.py`), a decoder reads the coded data of a crop only. A
loader makes the indexes in its first epoch, and `index_jpegs` makes them ahead. Nothing is lost
with their file: the next loader makes it again. An index of another image is never used, because
each contains the checksum of its JPEG.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jpeg.mcu_index import LARGEST_SHARE, NONE, UNKNOWN, checksum
from ..kernels.compiled import compiled, copy_memory, read_file
from .format import IMAGE_MODES
from .index import BetonIndex
from .jpeg_index_file import IndexFile

SMALLEST = 4096  # bytes of a JPEG: decoding less saves too little
_COPIED = 1 << 18  # images whose indexes are in memory while they are copied
_BUFFER = 1 << 19  # bytes of a file that are read at a time
_GAP = 4096  # bytes between two indexes that are read over: the system reads whole pages


class JpegIndexes:
    """Indexes of R images of a beton, in memory.

    Compiled code reads and adds indexes. The index of row r has `lengths[r]` bytes (or `UNKNOWN` or
    `NONE`) at `data[places[r]]`, and room up to `places[r + 1]`. `stored` are the lengths in the
    file.

    Memory: at most 1.45 % of the bytes of the images.

    Args:
        file: the file where the indexes are kept. None keeps none.
        ptrs: byte offset of each image in the beton, uint64 `(R,)`, ascending.
        sizes: bytes of each image, int64 `(R,)`.
        is_jpeg: which of the rows are JPEGs that should have an index, bool `(R,)`.
    """

    def __init__(
        self,
        file: IndexFile | None,
        ptrs: NDArray[np.uint64],
        sizes: NDArray[np.int64],
        is_jpeg: NDArray[np.bool_],
    ) -> None:
        wanted = is_jpeg & (sizes >= SMALLEST)
        room = np.where(wanted, (LARGEST_SHARE * sizes).astype(np.int64) + 7 & ~7, 0)
        self.places = np.concatenate(([0], np.cumsum(room)))
        self.data = np.empty(int(self.places[-1]), dtype=np.uint8)
        self.lengths = np.where(wanted, UNKNOWN, NONE)
        self.stored = self.lengths.copy()
        self.file = file
        self._ptrs = ptrs
        self._in_use = threading.Lock()  # of the file

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """Arrays for compiled code."""
        return self.data, self.places, self.lengths, self.stored

    @property
    def largest(self) -> int:
        """Most bytes that an index may have."""
        return int(np.diff(self.places).max(initial=0))

    def refresh(self) -> None:
        """Read the indexes that the file has gained and this object lacks.

        Does nothing while another thread reads or saves.
        """
        with self._free_file() as file:
            if file is not None and (self.lengths == UNKNOWN).any():
                self._read_new(file)

    def save(self) -> None:
        """Append the indexes that the file lacks.

        Does nothing while another thread reads or saves. Decoders may make indexes meanwhile.

        Raises:
            OSError: the file cannot be written.
        """
        with self._free_file() as file:
            if file is None or np.array_equal(self.lengths, self.stored):
                return
            self._read_new(file)  # another process may have saved the same indexes
            lengths = self.lengths.copy()  # a decoder may be about to make an index again
            rows = np.flatnonzero((lengths != self.stored) & (lengths != UNKNOWN))
            if len(rows):
                sizes = np.maximum(lengths[rows], 0)
                file.append(self._ptrs[rows], self.data, self.places[rows], sizes)
                self.stored[rows] = lengths[rows]

    @contextmanager
    def _free_file(self) -> Iterator[IndexFile | None]:
        """Yield the file, unless there is none or another thread, perhaps stuck, uses it."""
        is_free = self._in_use.acquire(blocking=False)
        try:
            yield self.file if is_free else None
        finally:
            if is_free:
                self._in_use.release()

    def _read_new(self, file: IndexFile) -> None:
        for block in file.new_blocks():  # the latest index of an image counts
            records = block.records
            rows = np.searchsorted(self._ptrs, records["ptr"])
            rows[rows == len(self._ptrs)] = 0
            sizes = np.ascontiguousarray(records["num_bytes"])
            offsets = block.start + np.cumsum(sizes) - sizes
            known = self._ptrs[rows] == records["ptr"]
            table = np.stack((rows, offsets, sizes, records["checksum"]), axis=1)[known]
            _read_indexes(block.file, table, *self.state)


def copy_indexes(source: BetonIndex, ptrs: NDArray[np.uint64], target: BetonIndex) -> None:
    """Copy the stored indexes of images that were copied to a new beton.

    Args:
        source: the beton that the images come from.
        ptrs: byte offset in `source` of each row of `target.allocations` `(R,)`.
        target: the new beton.

    Raises:
        OSError: the file of `target` cannot be written.
    """
    file, order = IndexFile(target), np.argsort(ptrs)
    for at in range(0, len(order), _COPIED):
        rows = target.allocations[order[at : at + _COPIED]]
        sizes, is_jpeg = rows["size"].astype(np.int64), np.ones(len(rows), dtype=np.bool_)
        found = JpegIndexes(IndexFile(source), ptrs[order[at : at + _COPIED]], sizes, is_jpeg)
        found.refresh()
        known = np.flatnonzero((sizes >= SMALLEST) & (found.lengths != UNKNOWN))
        if len(known):
            lengths = np.maximum(found.lengths[known], 0)
            file.append(rows["ptr"][known], found.data, found.places[known], lengths)


def jpeg_images(index: BetonIndex, field: str) -> NDArray[np.bool_]:
    """Return which images of a field are JPEGs `(N,)`."""
    mode = next(number for number, name in IMAGE_MODES.items() if name == "jpg")
    found: NDArray[np.bool_] = index.column(field)["mode"] == mode
    return found


@compiled()
def _read_indexes(file: Any, table: Any, data: Any, places: Any, lengths: Any, stored: Any) -> None:
    """Read the indexes of `table`: row, offset in the file, bytes and checksum of each."""
    largest, first = _BUFFER, 0
    for number in range(len(table)):
        largest = max(largest, table[number, 2])
    buffer = np.empty(largest, dtype=np.uint8)
    while first < len(table):
        start = table[first, 1]
        end, stop = start + table[first, 2], first + 1
        while stop < len(table):
            offset, size = table[stop, 1], table[stop, 2]
            if offset - end > _GAP or offset + size - start > buffer.size:
                break
            end, stop = offset + size, stop + 1
        found = max(read_file(file, buffer.ctypes.data, end - start, start), 0)
        for number in range(first, stop):
            row, offset, size, expected = table[number]
            index = buffer[offset - start : min(offset - start + size, found)]
            if index.size == size and (size == 0 or checksum(index) == expected):
                _take(index, row, data, places, lengths, stored)
        first = stop


@compiled(inline="always")
def _take(index: Any, row: Any, data: Any, places: Any, lengths: Any, stored: Any) -> None:
    """Store an index that was read, unless there is one that the file may have as well."""
    length, room = index.size if index.size > 0 else NONE, data[places[row] : places[row + 1]]
    if lengths[row] == UNKNOWN:
        if index.size <= room.size:
            copy_memory(room.ctypes.data, index.ctypes.data, index.size)
            lengths[row] = stored[row] = length
    elif lengths[row] == length and checksum(room[: index.size]) == checksum(index):
        stored[row] = length
