"""The indexes of a beton's JPEGs, kept in a file `NAME.beton.jpegs` next to it.

With the index of a JPEG (see `jpeg/mcu_index.py`), a decoder reads the coded data of a crop only.
Where the folder of the beton cannot be written, the file is in the user's cache folder. Nothing is
lost with the file: loaders and `dp4tl index` make it again.

The file starts with a header that names the beton. Blocks follow: a table of `_RECORD`, then the
indexes in the order of the table. Later blocks override earlier ones, and a block that a killed
process has left unfinished is ignored and overwritten. An index of another image is never used,
because each contains the checksum of its JPEG.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jpeg.mcu_index import LARGEST_SHARE, NONE, UNKNOWN, checksum
from ..kernels.compiled import compiled, read_file
from .format import IMAGE_MODES
from .index import BetonIndex

SUFFIX = ".jpegs"

_MAGIC = b"dp4tl\0\0\1"  # the last byte is the version of the format
_HEADER = np.dtype([("magic", "S8"), ("fingerprint", "S64")])
_BLOCK = np.dtype([("count", "<u8"), ("num_bytes", "<u8"), ("checksum", "<i8")])
_RECORD = np.dtype([("ptr", "<u8"), ("checksum", "<i8"), ("num_bytes", "<i8")])
_BLOCK_ROWS = 1 << 16
_SMALLEST = 4096  # bytes of a JPEG: decoding less saves too little


class JpegIndexes:
    """Indexes of R images of a beton, in memory, and the file where they are kept.

    Compiled code reads and adds indexes. The index of row r has `lengths[r]` bytes (or `UNKNOWN` or
    `NONE`) at `data[places[r]]`, and room up to `places[r + 1]`. `stored` are the lengths in the
    file.

    Args:
        index: the beton.
        ptrs: byte offset of each image in the beton, uint64 `(R,)`, ascending.
        sizes: bytes of each image, int64 `(R,)`.
        is_jpeg: which of the rows are JPEGs that should have an index, bool `(R,)`.
    """

    def __init__(
        self,
        index: BetonIndex,
        ptrs: NDArray[np.uint64],
        sizes: NDArray[np.int64],
        is_jpeg: NDArray[np.bool_],
    ) -> None:
        wanted = is_jpeg & (sizes >= _SMALLEST)
        room = np.where(wanted, (LARGEST_SHARE * sizes).astype(np.int64) + 7 & ~7, 0)
        self.places = np.concatenate(([0], np.cumsum(room)))
        self.data = np.empty(int(self.places[-1]), dtype=np.uint8)
        self.lengths = np.where(wanted, UNKNOWN, NONE)
        self.stored = self.lengths.copy()
        self._ptrs = ptrs
        self._beton = index
        self._seen: dict[Path, int] = {}
        if wanted.any():
            self.refresh()

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """Arrays for compiled code."""
        return self.data, self.places, self.lengths, self.stored

    def refresh(self) -> None:
        """Read the indexes that the file has gained and this object lacks."""
        for path in self._paths() if (self.lengths == UNKNOWN).any() else ():
            with suppress(OSError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH)
                if self._is_own(stream):
                    blocks = list(_blocks(stream, self._seen.get(path, _HEADER.itemsize)))
                    for place, records in reversed(blocks):  # the latest index of an image counts
                        self._read(stream.fileno(), place, records)
                        end = place + int(records["num_bytes"].sum())
                        self._seen[path] = max(end, self._seen.get(path, 0))

    def save(self) -> None:
        """Append the indexes that the file lacks. Without permission or room, nothing happens."""
        rows = np.flatnonzero(self.lengths != self.stored)
        if not len(rows):
            return
        for path in self._paths():
            with suppress(OSError), _locked(path) as stream:
                end = self._end(stream)
                for first in range(0, len(rows), _BLOCK_ROWS):
                    self._append(stream, rows[first : first + _BLOCK_ROWS])
                stream.flush()
                if self._seen.get(path, _HEADER.itemsize) == end:  # no other process wrote
                    self._seen[path] = stream.tell()
                return

    def _paths(self) -> tuple[Path, Path]:
        beton = self._beton.path
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = f"{self._beton.fingerprint}{SUFFIX}"
        return beton.with_name(beton.name + SUFFIX), home / "dp4tl_ffcv" / name

    @property
    def _header(self) -> bytes:
        return np.array((_MAGIC, self._beton.fingerprint.encode()), dtype=_HEADER).tobytes()

    def _is_own(self, stream: Any) -> bool:
        stream.seek(0)
        return bool(stream.read(_HEADER.itemsize) == self._header)

    def _end(self, stream: Any) -> int:
        """Cut off an unfinished block, or start the file again if it is another beton's."""
        end = _HEADER.itemsize
        if self._is_own(stream):
            for place, records in _blocks(stream, end):
                end = place + int(records["num_bytes"].sum())
        else:
            stream.seek(0)
            stream.write(self._header)
        stream.truncate(end)
        stream.seek(end)
        return end

    def _read(self, file: int, place: int, records: NDArray[Any]) -> None:
        rows = np.searchsorted(self._ptrs, records["ptr"])
        rows[rows == len(self._ptrs)] = 0
        sizes = np.ascontiguousarray(records["num_bytes"])
        offsets = place + np.cumsum(sizes) - sizes
        known = self._ptrs[rows] == records["ptr"]
        table = np.stack((rows, offsets, sizes, records["checksum"]), axis=1)[known]
        _read_indexes(file, table, *self.state)

    def _append(self, stream: Any, rows: NDArray[np.int64]) -> None:
        records = np.zeros(len(rows), dtype=_RECORD)
        records["ptr"] = self._ptrs[rows]
        records["num_bytes"] = np.maximum(self.lengths[rows], 0)
        starts = self.places[rows]
        parts = [
            self.data[start : start + size]
            for start, size in zip(starts.tolist(), records["num_bytes"].tolist(), strict=True)
        ]
        records["checksum"] = [checksum(part) for part in parts]
        table = records.view(np.uint8)
        total = int(records["num_bytes"].sum())
        block = np.array((len(rows), total, checksum(table)), dtype=_BLOCK)
        stream.write(b"".join([block.tobytes(), table.tobytes(), *map(bytes, parts)]))
        self.stored[rows] = self.lengths[rows]


def jpeg_images(index: BetonIndex, field: str) -> NDArray[np.bool_]:
    """Return which images of a field are JPEGs `(N,)`."""
    mode = next(number for number, name in IMAGE_MODES.items() if name == "jpg")
    found: NDArray[np.bool_] = index.column(field)["mode"] == mode
    return found


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def _blocks(stream: Any, start: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the place of the indexes and the table of each whole block from `start` on."""
    size = os.fstat(stream.fileno()).st_size
    while start + _BLOCK.itemsize <= size:
        stream.seek(start)
        count, num_bytes, expected = np.frombuffer(stream.read(_BLOCK.itemsize), _BLOCK)[0].tolist()
        place = start + _BLOCK.itemsize + count * _RECORD.itemsize
        if place + num_bytes > size:
            return
        table = np.frombuffer(bytearray(stream.read(count * _RECORD.itemsize)), dtype=np.uint8)
        records = table.view(_RECORD)
        if checksum(table) != expected or records["num_bytes"].sum() != num_bytes:
            return
        yield place, records
        start = place + num_bytes


@compiled()
def _read_indexes(file: Any, table: Any, data: Any, places: Any, lengths: Any, stored: Any) -> None:
    """Read the indexes of `table`: row, offset in the file, bytes and checksum of each."""
    for number in range(len(table)):
        row, offset, size, expected = table[number]
        room = data[places[row] : places[row + 1]]
        if size > room.size or size < 0 or lengths[row] != UNKNOWN:
            continue
        if size == 0:
            lengths[row] = stored[row] = NONE
        elif read_file(file, room.ctypes.data, size, offset) == size and (
            checksum(room[:size]) == expected
        ):
            lengths[row] = stored[row] = size
