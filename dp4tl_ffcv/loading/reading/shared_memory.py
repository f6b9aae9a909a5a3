"""Memory that the processes of a machine share: the first process fills it, the others map it.

The memory is a file in the system's memory file system. The process that fills it holds an
exclusive lock. Processes that map it hold shared locks, and the last one to leave removes it. A
killed process loses its locks, so that the next process can fill or remove its file.
"""

import fcntl
import mmap
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/dev/shm")
_PREFIX = "dp4tl_ffcv-"
_FILLED = b"filled"
_HEADER = mmap.PAGESIZE
_PAUSE = 0.01  # seconds between two attempts to get a lock

Fill = Callable[[NDArray[np.uint8]], None]


def shared_bytes(num_bytes: int, fill: Fill, name: str | None) -> NDArray[np.uint8]:
    """Return `num_bytes` of memory, filled by this process or by another one.

    Only one of the processes that ask for the same name calls `fill`. The name identifies the
    content, in letters and digits. With None, the memory is not shared. Raises OSError if there is
    no room.
    """
    if name is None or not num_bytes:
        memory = np.empty(num_bytes, dtype=np.uint8)
        fill(memory)
        return memory
    _remove_abandoned()
    path = FOLDER / f"{_PREFIX}{os.getuid()}-{name}"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _lock(file):
                return _map(file, path, num_bytes, fill)
        except BaseException:
            _leave(file, path)
            raise
        os.close(file)
        time.sleep(_PAUSE)


def _lock(file: int) -> bool:
    """Lock the file, exclusively if it is not filled yet; return False to try again."""
    fcntl.flock(file, fcntl.LOCK_SH)  # waits while another process fills it
    if not os.fstat(file).st_nlink:  # another process removed it
        return False
    if _is_filled(file):
        return True
    try:
        # Without waiting: another process that found it empty may also hold a shared lock.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file).st_nlink > 0


def _is_filled(file: int) -> bool:
    return os.pread(file, len(_FILLED), 0) == _FILLED


def _map(file: int, path: Path, num_bytes: int, fill: Fill) -> NDArray[np.uint8]:
    """Map a locked file, fill it if necessary, and keep a shared lock on it."""
    filled = _is_filled(file)
    if not filled:
        try:
            os.posix_fallocate(file, 0, _HEADER + num_bytes)
        except OSError as error:
            raise OSError(
                error.errno,
                f'no room for cache="ram": it needs {num_bytes} bytes in {FOLDER}. Enlarge that '
                'file system (docker: --shm-size), or use cache="os" or "extents".',
            ) from error
    view = mmap.mmap(file, _HEADER + num_bytes)
    memory = np.frombuffer(view, dtype=np.uint8, offset=_HEADER)
    if not filled:
        fill(memory)
        os.pwrite(file, _FILLED, 0)
    fcntl.flock(file, fcntl.LOCK_SH)
    weakref.finalize(view, _leave, file, path)
    return memory


def _leave(file: int, path: Path) -> None:
    """Release the lock, and remove the file if no other process uses it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass  # others still use it
    finally:
        os.close(file)


def _remove_abandoned() -> None:
    for path in FOLDER.glob(f"{_PREFIX}{os.getuid()}-*"):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        _leave(file, path)
