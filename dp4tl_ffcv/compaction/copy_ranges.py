"""Copy many byte ranges from one file to their places in another."""

import errno
import os
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..artifacts import part_path
from ..parallel import map_ordered
from ..progress import track
from ..writing.pages import write_all
from .source import SourceFile

# The kernel copies ranges of at least this size. It is faster to collect shorter ranges in a
# buffer and to write the buffer.
_LONG = 1 << 20
# A buffer is written at multiples of this size, while its data is still in the CPU's cache.
_BLOCK = 1 << 19
_TASK = 1 << 23  # bytes per task of a thread
# Errors when the kernel cannot copy between two files, or a sandbox forbids it.
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
_STAT_BLOCK = 512  # bytes, on any file system

Ranges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # starts, places, sizes


def check_free_space(target: Path, num_bytes: int) -> None:
    """Raise ValueError unless the disk has room for `target`.

    The unfinished file of a killed run counts as free space, because it is overwritten.
    """
    folder = next(folder for folder in target.absolute().parents if folder.is_dir())
    system = os.statvfs(folder)
    part = part_path(target)
    unfinished = part.stat().st_blocks * _STAT_BLOCK if part.exists() else 0
    free = system.f_bavail * system.f_frsize + unfinished
    if free < num_bytes:
        raise ValueError(
            f"no space left: {target.name} needs {num_bytes} bytes, and {str(folder)!r} has {free} "
            "free. Free space there, write elsewhere, or retain less."
        )


def copy_ranges(
    source: SourceFile, target: int, ranges: Ranges, num_threads: int, description: str
) -> None:
    """Copy `sizes[i]` bytes from `starts[i]` of a file to `places[i]` of another, for every i.

    `target` is a file descriptor. Places ascend, and the ranges do not overlap in the target. Short
    gaps between them are filled with zeros.

    Memory: 40 bytes per range, and a buffer of 1.5 MiB per thread.
    """
    runs = _join(*ranges)
    if not len(runs[0]):
        return
    copier = _Copier(source, target, runs)
    total = -(-int(ranges[2].sum()) >> 20)
    with map_ordered(copier.run, range(len(copier)), num_threads, threads=True) as tasks:
        for _ in track(tasks, total=total, description=description, unit="MiB", scale=_TASK >> 20):
            pass


class _Copier:
    """Copies runs. A run joins ranges that follow each other in both files."""

    def __init__(self, source: SourceFile, target: int, runs: Ranges) -> None:
        self._source = source
        self._target = target
        self._starts, self._places, self._sizes = _, places, sizes = runs
        # The runs `chunks[c]` to `chunks[c + 1]` are written together. A long run is a chunk.
        changes = np.diff(places // _BLOCK) != 0
        long = sizes >= _LONG
        changes |= long[1:] | long[:-1]
        self._chunks = np.concatenate(([0], np.flatnonzero(changes) + 1, [len(sizes)]))
        # Task t copies the chunks `tasks[t]` to `tasks[t + 1]`.
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
                self._copy_through_buffer(first, end)

    def _copy_through_buffer(self, first: int, end: int) -> None:
        """Read the runs `first` to `end` into one buffer, and write it in one call."""
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
        write_all(self._target, view[:span], base)

    def _copy_run(self, start: int, place: int, size: int) -> None:
        while size and self._kernel_copies:
            try:
                copied = os.copy_file_range(self._source.fileno(), self._target, size, start, place)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                self._kernel_copies = False  # the next run would fail in the same way
                break
            if not copied:  # the source ends here (the read below will fail) or no support
                break
            start, place, size = start + copied, place + copied, size - copied
        view = self._buffer().data
        while size:
            part = view[: min(size, _LONG)]
            self._source.read_into(part, start)
            write_all(self._target, part, place)
            start, place, size = start + len(part), place + len(part), size - len(part)

    def _buffer(self) -> NDArray[np.uint8]:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = np.empty(_BLOCK + _LONG, dtype=np.uint8)
        buffer: NDArray[np.uint8] = self._local.buffer
        return buffer


def _join(starts: NDArray[np.int64], places: NDArray[np.int64], sizes: NDArray[np.int64]) -> Ranges:
    """Return runs: ranges that follow each other in both files are joined, empty ones dropped.

    A run ends with its task, so that several threads can copy a file whose order is kept.
    """
    filled = sizes > 0
    starts, places, sizes = starts[filled], places[filled], sizes[filled]
    if not len(sizes):
        return starts, places, sizes
    follows = (np.diff(starts) == sizes[:-1]) & (np.diff(places) == sizes[:-1])
    follows &= np.diff(places // _TASK) == 0
    first = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    return starts[first], places[first], np.add.reduceat(sizes, first)
