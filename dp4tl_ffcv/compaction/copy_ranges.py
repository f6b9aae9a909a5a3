"""Copy many byte ranges of one file to their places in another, as fast as the system can."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import part_path
from ..errors import BetonError
from ..parallel import map_ordered
from ..progress import track

# Ranges of at least this many bytes are copied inside the kernel. Below it a call per range costs
# more than reading the ranges into one buffer and writing that.
_LONG = 1 << 20
# Shorter ranges are gathered until they reach past a multiple of this: what is read stays in the
# processor's cache until it is written.
_BLOCK = 1 << 19
_TASK = 1 << 23  # bytes that a thread copies at a time
# The kernel cannot copy between these files, or a sandbox does not let it.
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
_STAT_BLOCK = 512  # bytes, on any file system
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class SourceFile:
    """A file open for reading, which must not change as long as it is read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("rb", buffering=0)
        self.signature = _signature(os.fstat(self.fileno()))
        """Which file it is, its size, and when it was last written to."""

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._stream.fileno()

    def read(self, offset: int, size: int) -> bytearray:
        """Read `size` bytes from `offset` on; any number of threads may.

        Raises:
            BetonError: the file ends before.
        """
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises:
            BetonError: the file ends before.
        """
        done = 0
        while done < len(buffer):
            read = os.preadv(self.fileno(), (buffer[done:],), offset + done)
            if read == 0:
                raise BetonError(
                    f"`source` must stay whole while it is copied; got {str(self.path)!r}, which "
                    f"has no byte {offset + done}. It was truncated: restore it and run this again."
                )
            done += read

    def check_unchanged(self) -> None:
        """Raise BetonError if the file was written to, or replaced, since it was opened."""
        try:
            now = _signature(self.path.stat())
        except FileNotFoundError:
            now = None
        if now != self.signature or _signature(os.fstat(self.fileno())) != self.signature:
            raise BetonError(
                f"`source` must not change while it is copied; got {str(self.path)!r}, which was "
                "written to or replaced. Run this again when it is finished."
            )

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def check_free_space(target: Path, num_bytes: int) -> None:
    """Raise ValueError unless the file system of `target` has `num_bytes` free.

    What an unfinished file of `target` takes counts as free: it is continued or written anew.
    """
    folder = next(folder for folder in target.absolute().parents if folder.is_dir())
    system = os.statvfs(folder)
    part = part_path(target)
    left = part.stat().st_blocks * _STAT_BLOCK if part.exists() else 0  # by a run that was killed
    free = system.f_bavail * system.f_frsize + left
    if free < num_bytes:
        raise ValueError(
            f"`out` must have room for {num_bytes} bytes; got {free} free in {str(folder)!r}. "
            "Make room, write elsewhere, or retain less."
        )


@contextmanager
def naming_target(target: Path) -> Iterator[None]:
    """Within the block, an error that says that a disk is full names `target`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def copy_extents(
    source: SourceFile,
    target: int,
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
    *,
    jobs: int,
    description: str,
) -> None:
    """Copy `sizes[i]` bytes from `starts[i]` of `source` to `places[i]` of `target`, for every i.

    Bytes between two ranges that lie close together in `target` become zero. Memory: 40 bytes per
    range, and a buffer of 1.5 MiB per thread.

    Args:
        source: the file to read.
        target: descriptor of the file to write.
        starts: byte offsets `(R,)` in the source.
        places: byte offsets `(R,)` in the target, ascending; the ranges do not overlap.
        sizes: bytes `(R,)`.
        jobs: threads.
        description: what is going on, in a few words, for the progress report.

    Raises:
        BetonError: the source ends inside a range.
    """
    runs = _join(starts, places, sizes)
    if not len(runs[0]):
        return
    copier = _Copier(source, target, *runs)
    total = -(-int(sizes.sum()) >> 20)
    # Threads that outlive a failure would write to whatever file is opened next.
    with map_ordered(copier.run, range(len(copier)), jobs, threads=True) as done:
        for _ in track(done, total=total, description=description, unit="MiB", scale=_TASK >> 20):
            pass


class _Copier:
    """Copies runs: ranges that follow each other without a gap in both files, joined."""

    def __init__(
        self,
        source: SourceFile,
        target: int,
        starts: NDArray[np.int64],
        places: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        self._source = source
        self._target = target
        self._starts, self._places, self._sizes = starts, places, sizes
        # Runs `chunks[c]` to `chunks[c + 1]` are written together; a long run stands alone.
        changes = np.diff(places // _BLOCK) != 0
        long = sizes >= _LONG
        changes |= long[1:] | long[:-1]
        self._chunks = np.concatenate(([0], np.flatnonzero(changes) + 1, [len(sizes)]))
        # Chunks `tasks[t]` to `tasks[t + 1]` are one thread's.
        changes = np.diff(places[self._chunks[:-1]] // _TASK) != 0
        self._tasks = np.concatenate(([0], np.flatnonzero(changes) + 1, [len(self._chunks) - 1]))
        self._kernel_copies = hasattr(os, "copy_file_range")
        self._local = threading.local()

    def __len__(self) -> int:
        return len(self._tasks) - 1

    def run(self, task: int) -> None:
        """Copy the runs of a task."""
        chunks = self._chunks[self._tasks[task] : self._tasks[task + 1] + 1].tolist()
        for first, end in pairwise(chunks):
            if self._sizes[first] >= _LONG:
                self._copy_run(
                    int(self._starts[first]), int(self._places[first]), int(self._sizes[first])
                )
            else:
                self._gather(first, end)

    def _gather(self, first: int, end: int) -> None:
        """Read the runs `first` to `end` into the buffer at their distances; write it at once."""
        buffer = self._buffer()
        base = int(self._places[first])
        sizes = self._sizes[first:end]
        span = int(self._places[end - 1] + sizes[-1]) - base
        view = buffer.data
        if span != sizes.sum():
            buffer[:span] = 0
        offsets = (self._places[first:end] - base).tolist()
        runs = zip(self._starts[first:end].tolist(), offsets, sizes.tolist(), strict=True)
        handle = self._source.fileno()
        for start, offset, size in runs:
            part = view[offset : offset + size]
            read = os.preadv(handle, (part,), start)
            if read != size:
                self._source.read_into(part[read:], start + read)
        self._write(view[:span], base)

    def _copy_run(self, start: int, place: int, size: int) -> None:
        while size and self._kernel_copies:
            try:
                copied = os.copy_file_range(self._source.fileno(), self._target, size, start, place)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._kernel_copies = False  # for good: the next run would fail in the same way
                break
            if not copied:  # the end of the source, or a file system that cannot: reading will say
                break
            start, place, size = start + copied, place + copied, size - copied
        view = self._buffer().data
        while size:
            part = view[: min(size, _LONG)]
            self._source.read_into(part, start)
            self._write(part, place)
            start, place, size = start + len(part), place + len(part), size - len(part)

    def _write(self, data: memoryview, place: int) -> None:
        while data:
            written = os.pwrite(self._target, data, place)
            data, place = data[written:], place + written

    def _buffer(self) -> NDArray[np.uint8]:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = np.empty(_BLOCK + _LONG, dtype=np.uint8)
        buffer: NDArray[np.uint8] = self._local.buffer
        return buffer


def _join(
    starts: NDArray[np.int64], places: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Leave out empty ranges, and join those that follow each other in both files.

    A run ends with its task, so that a file in the old order too is copied by several threads.
    """
    filled = sizes > 0
    starts, places, sizes = starts[filled], places[filled], sizes[filled]
    if not len(sizes):
        return starts, places, sizes
    follows = (np.diff(starts) == sizes[:-1]) & (np.diff(places) == sizes[:-1])
    follows &= np.diff(places // _TASK) == 0
    first = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    return starts[first], places[first], np.add.reduceat(sizes, first)


def _signature(status: os.stat_result) -> tuple[Any, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
