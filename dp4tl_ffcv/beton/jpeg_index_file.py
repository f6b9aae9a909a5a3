"""The file `NAME.beton.jpegs` that keeps the indexes of a beton's JPEGs.

It lies next to the beton or, where that folder cannot be written, in the user's cache folder. A
header names the beton. Blocks follow: a table of `RECORD`, then the indexes in the order of the
table. Later blocks override earlier ones.

Processes only append, one at a time, and read without a lock: a block counts once it is whole. The
next process to append overwrites a block that a killed process left unfinished.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import is_at, lock, unlock, write_all
from ..jpeg.mcu_index import checksum
from ..kernels.compiled import compiled, copy_memory
from ..stored import adding_filename, inode_of, open_file
from .index import BetonIndex

SUFFIX = ".jpegs"
RECORD = np.dtype([("ptr", "<u8"), ("checksum", "<i8"), ("num_bytes", "<i8")])
"""Place of a JPEG in the beton; checksum and bytes of its index, 0 if it cannot have one."""

_MAGIC = b"dp4tl\0\0\1"  # the last byte is the version of the format
_HEADER = np.dtype([("magic", "S8"), ("fingerprint", "S64")])
_BLOCK = np.dtype([("count", "<u8"), ("num_bytes", "<u8"), ("checksum", "<i8")])
_BLOCK_ROWS = 1 << 14  # about 20 MB of memory while a block is written
_PATIENCE = 10.0  # seconds to wait for another process, which may be stopped


@dataclass(frozen=True)
class Block:
    """A block of a file. Its table was checked; its indexes were not read."""

    file: int
    """Descriptor of the file."""
    records: NDArray[Any]
    """Table of `RECORD`, `(n,)`."""
    start: int
    """First byte of the indexes."""

    @property
    def head_at(self) -> int:
        """First byte of the block."""
        return self.start - self.records.nbytes - _BLOCK.itemsize

    @property
    def end(self) -> int:
        """First byte after the block."""
        return self.start + int(self.records["num_bytes"].sum())


class IndexFile:
    """Reads and appends to the indexes of a beton's JPEGs.

    Args:
        beton: the beton. If another one takes its path, nothing is appended any more.
    """

    def __init__(self, beton: BetonIndex) -> None:
        self._beton = beton.path
        self._inode = beton.identity[:2] or inode_of(beton.path)
        self._header = np.array((_MAGIC, beton.fingerprint.encode()), dtype=_HEADER).tobytes()
        self._paths = [index_path(beton.path), *_cache_paths(beton.fingerprint)]
        # Of each file that was read: the place and the head of the last block, and its end.
        self._read: dict[Any, tuple[int, bytes, int]] = {}

    @property
    def path(self) -> Path | None:
        """The file, or None if there is none."""
        for path in self._paths:
            with suppress(OSError), open_file(path) as stream:
                if self._is_own(stream.fileno()):
                    return path
        return None

    def new_blocks(self) -> Iterator[Block]:
        """Yield the blocks that were appended since the last call, the latest first."""
        for path in self._paths:
            with suppress(OSError), open_file(path) as stream:
                if self._is_own(file := stream.fileno()):
                    blocks = list(_blocks(file, self._read_of(file)))
                    if blocks:
                        self._keep(file, blocks[-1].head_at, blocks[-1].end)
                    yield from reversed(blocks)

    def append(
        self,
        ptrs: NDArray[np.uint64],
        data: NDArray[np.uint8],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        """Append the indexes of n JPEGs.

        Args:
            ptrs: place of each JPEG in the beton `(n,)`.
            data: memory that holds the indexes.
            starts: place of each index in `data` `(n,)`.
            sizes: bytes of each index `(n,)`, 0 for a JPEG that cannot have one.

        Raises:
            OSError: no file can be written, or another beton has taken the path.
        """
        self._check_beton()
        failed: OSError | None = None
        for path in self._paths:
            blocks = (
                _block(ptrs[part], data, starts[part], sizes[part])
                for part in (slice(at, at + _BLOCK_ROWS) for at in range(0, len(ptrs), _BLOCK_ROWS))
            )
            try:
                if path != self._paths[0]:
                    path.parent.mkdir(parents=True, exist_ok=True)
                with locked(path) as file:
                    self._check_beton()  # after the lock: the file belongs to this beton
                    self._append(file, blocks)
                return
            except OSError as error:
                failed = failed or error
        raise failed or FileNotFoundError(self._beton)

    def _check_beton(self) -> None:
        if not self._inode or inode_of(self._beton) != self._inode:
            raise OSError(errno.ESTALE, "another beton has taken its place", str(self._beton))

    def _append(self, file: int, blocks: Iterator[memoryview]) -> None:
        end = self._cut(file)
        was_read = end == self._read_of(file)  # no other process appended
        for block in blocks:
            try:
                write_all(file, block, end)
            except BaseException:
                os.ftruncate(file, end)
                raise
            if was_read:
                self._keep(file, end, end + len(block))
            end += len(block)

    def _cut(self, file: int) -> int:
        """Cut off an unfinished block, or start another beton's file again; return the end."""
        if self._is_own(file):
            end = self._read_of(file)
            for block in _blocks(file, end):
                end = block.end
        elif not _is_index_file(os.pread(file, len(_MAGIC), 0)):
            raise OSError(errno.EEXIST, "the file holds something else")
        else:
            os.ftruncate(file, 0)
            write_all(file, self._header, 0)
            end = len(self._header)
        os.ftruncate(file, end)
        return end

    def _is_own(self, file: int) -> bool:
        return os.pread(file, len(self._header), 0) == self._header

    def _keep(self, file: int, head_at: int, end: int) -> None:
        """Note that the blocks up to `end` were read, of which the last begins at `head_at`."""
        head = os.pread(file, _BLOCK.itemsize, head_at)
        self._read[inode_of(file)] = head_at, head, end

    def _read_of(self, file: int) -> int:
        """Return the end of the blocks that were read before."""
        nothing = 0, b"", len(self._header)
        head_at, head, end = self._read.get(inode_of(file), nothing)
        # A file that was deleted and made again may have the same inode.
        is_same = os.pread(file, len(head), head_at) == head and end <= os.fstat(file).st_size
        return end if is_same else len(self._header)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Open a file of indexes, which is made if necessary, and lock it against other processes.

    The file is removed at the end of the block if it has no blocks.

    Raises:
        OSError: the file cannot be opened for writing, or another process keeps its lock for 10
            seconds.
    """
    file = lock(path, os.O_RDWR | os.O_CREAT, path, _PATIENCE)
    try:
        with adding_filename(path):
            yield file
    finally:
        with suppress(OSError):  # another process has removed it, or this one must not
            if _is_empty(file) and is_at(path, file):
                path.unlink()
        unlock(file)


def index_path(beton: Path) -> Path:
    """Return the path of the file next to a beton."""
    return beton.with_name(beton.name + SUFFIX)


def remove_index(beton: Path) -> None:
    """Remove the file of the beton that another one has just replaced."""
    path = index_path(beton)
    with suppress(OSError):  # not ours to remove; it is ignored
        with open_file(path) as stream:
            is_index = _is_index_file(stream.read(len(_MAGIC)))
        if is_index:
            path.unlink()


def _is_index_file(start: bytes) -> bool:
    """Return whether a file with this start, perhaps cut off, holds indexes in this format."""
    return start == _MAGIC[: len(start)]


def _is_empty(file: int) -> bool:
    """Return whether a file of this format has no blocks. Others are not ours to judge."""
    start = os.pread(file, _HEADER.itemsize + 1, 0)
    return len(start) <= _HEADER.itemsize and _is_index_file(start[: len(_MAGIC)])


def _cache_paths(fingerprint: str) -> list[Path]:
    with suppress(RuntimeError):  # the user has no home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return [home / "dp4tl_ffcv" / f"{fingerprint}{SUFFIX}"]
    return []


def _blocks(file: int, start: int) -> Iterator[Block]:
    """Yield the whole blocks from byte `start` on."""
    size = os.fstat(file).st_size
    while start + _BLOCK.itemsize <= size:
        head = os.pread(file, _BLOCK.itemsize, start)
        if len(head) < _BLOCK.itemsize:
            return
        count, num_bytes, expected = np.frombuffer(head, _BLOCK)[0].tolist()
        place = start + _BLOCK.itemsize + count * RECORD.itemsize
        if not count or place + num_bytes > size:
            return
        table = np.frombuffer(
            bytearray(os.pread(file, count * RECORD.itemsize, start + _BLOCK.itemsize)), np.uint8
        )
        if len(table) != count * RECORD.itemsize or checksum(table) != expected:
            return
        block = Block(file, table.view(RECORD), place)
        if block.records["num_bytes"].min() < 0 or block.end != place + num_bytes:
            return
        yield block
        start = block.end


def _block(
    ptrs: NDArray[np.uint64],
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> memoryview:
    records = np.empty(len(ptrs), dtype=RECORD)
    records["ptr"], records["num_bytes"] = ptrs, sizes
    total, table_bytes = int(sizes.sum()), records.nbytes
    block = np.empty(_BLOCK.itemsize + table_bytes + total, dtype=np.uint8)
    checksums = np.empty(len(ptrs), dtype=np.int64)
    _gather(data, starts, sizes, block[_BLOCK.itemsize + table_bytes :], checksums)
    records["checksum"] = checksums
    table = records.view(np.uint8)
    head = np.array([(len(ptrs), total, checksum(table))], dtype=_BLOCK)
    block[: _BLOCK.itemsize] = head.view(np.uint8)
    block[_BLOCK.itemsize : _BLOCK.itemsize + table_bytes] = table
    return block.data


@compiled()
def _gather(data: Any, starts: Any, sizes: Any, out: Any, checksums: Any) -> None:
    """Copy the indexes to `out` one after another, and fill in their checksums."""
    at = 0
    for row in range(len(sizes)):
        room = out[at : at + sizes[row]]
        copy_memory(room.ctypes.data, data[starts[row] :].ctypes.data, room.size)
        checksums[row] = checksum(room)
        at += room.size
