"""Memory that the processes of one machine share: filled by the first, mapped by the others.

The memory is a file in the system's memory file system. Who fills it holds an exclusive lock on it,
whoever maps it a shared one; the last one to leave removes it. A process that is killed loses its
locks, so what it left behind is recognised, and filled or removed by the next that looks.
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
    """Return `num_bytes` of memory that `fill` has written, by this process or by another.

    Args:
        num_bytes: size of the memory.
        fill: writes it; called by one of the processes that ask for the same name.
        name: of letters and digits; must differ for different content. None: not shared.

    Raises:
        OSError: there is no room for it.
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
    """Lock the file, exclusively if it has yet to be filled; say whether that could be done."""
    fcntl.flock(file, fcntl.LOCK_SH)  # waits while another process fills it
    if not os.fstat(file).st_nlink:  # removed meanwhile
        return False
    if _is_filled(file):
        return True
    try:
        # Not waited for: another who finds it empty too has a shared lock until it gets here.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file).st_nlink > 0


def _is_filled(file: int) -> bool:
    return os.pread(file, len(_FILLED), 0) == _FILLED


def _map(file: int, path: Path, num_bytes: int, fill: Fill) -> NDArray[np.uint8]:
    """Map a locked file, filled before or now, and keep a shared lock on it."""
    filled = _is_filled(file)
    if not filled:
        try:
            os.posix_fallocate(file, 0, _HEADER + num_bytes)
        except OSError as error:
            raise OSError(
                error.errno,
                f'`cache` must fit; got {num_bytes} bytes for "ram", which {FOLDER} has no room '
                'for. Enlarge it (docker: --shm-size), or choose cache="os" or "extents".',
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
    """Give up this process's lock, and remove the file if it was the last one."""
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
