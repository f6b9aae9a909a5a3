"""A file that several processes read, and to which one at a time appends."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..artifacts import try_lock
from .index import identity_of

_LOCKED_FOR = 10.0  # seconds to wait for another process, which may be stopped


def identity(file: Path | int) -> tuple[int, ...]:
    """Return device and inode of a file, empty without the file."""
    return identity_of(file)[:2]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to read, without waiting. A pipe opens too, and its first read fails."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def locked(path: Path, is_empty: Callable[[int], bool]) -> Iterator[int]:
    """Open a file, which is made if necessary, and keep other processes from appending to it.

    The file is removed at the end of the block if `is_empty(file)`.

    Raises:
        OSError: the file cannot be opened for writing.
        TimeoutError: another process keeps its lock for 10 seconds.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(file, path)
            if identity(file) == identity(path):
                try:
                    yield file
                finally:
                    _remove(path, file, is_empty)
                return
            # Otherwise another process removed the file before the lock.
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile would keep the lock
            os.close(file)


def _remove(path: Path, file: int, is_empty: Callable[[int], bool]) -> None:
    with suppress(OSError):  # what cannot be read at a place is not ours
        if is_empty(file) and identity(file) == identity(path):
            path.unlink()


def _lock(file: int, path: Path) -> None:
    until = time.monotonic() + _LOCKED_FOR
    while not try_lock(file, path):
        if time.monotonic() > until:
            text = "another process does not release its lock"
            raise TimeoutError(errno.ETIMEDOUT, text, str(path))
        time.sleep(0.02)
