"""Memory for bytes that are read: of one process, or shared by the processes of a machine.

Shared memory is a file in the system's memory file system. Each process that maps it holds a shared
lock, and the last one to leave removes it. A killed process loses its lock, so that the next
process can continue to use its file, or remove it.
"""

import errno
import fcntl
import mmap
import os
import stat
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/dev/shm")
_PREFIX = "dp4tl_ffcv-"
_GIB = 1 << 30
_MADV_WIPEONFORK = 18  # from <linux/mman.h>, as mmap has no name for it


def private_bytes(num_bytes: int) -> NDArray[np.uint8]:
    """Return memory of zeros that begins with a page. A forked process gets zeros again."""
    view = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # After a fork, this process could get a copy of a page to which a disk still writes.
    for advice in (mmap.MADV_HUGEPAGE, _MADV_WIPEONFORK):
        with suppress(OSError):  # an old kernel, or one without huge pages
            view.madvise(advice)
    return _array(view, num_bytes)


def shared_bytes(num_bytes: int, name: str) -> NDArray[np.uint8]:
    """Return memory that all processes map that ask for the same name. It begins with a page.

    The first process gets zeros. The name, in letters and digits, identifies the size and the
    content: after all processes were killed, the next one gets what they left.

    Raises OSError if there is no room.
    """
    path = _path(name)
    _remove_abandoned(path)
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _no_room(error, num_bytes) from error
        found = os.fstat(file)
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            os.close(file)
            foreign = PermissionError(errno.EPERM, f"{path} is not a file of this user")
            raise _no_room(foreign, num_bytes)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_nlink:
                return _map(file, path, num_bytes)
        except BaseException:
            _leave(file, path)
            raise
        os.close(file)  # another process has removed it before the lock


def shared_room() -> int:
    """Return the free bytes for shared memory, 0 if there is none."""
    with suppress(OSError):  # a container without the file system
        found = os.statvfs(FOLDER)
        if not found.f_flag & os.ST_RDONLY and os.access(FOLDER, os.W_OK | os.X_OK):
            return found.f_bavail * found.f_frsize
    return 0


def _path(name: str) -> Path:
    return FOLDER / f"{_PREFIX}{os.getuid()}-{name}"


def _no_room(error: OSError, num_bytes: int) -> OSError:
    return OSError(
        error.errno,
        f'cache="ram" cannot use {num_bytes / _GIB:.3g} GiB of {FOLDER}, where '
        f"{shared_room() / _GIB:.3g} GiB are free: {error.strerror}. Enlarge that file system "
        '(docker: --shm-size), or use cache="extents".',
    )


def _map(file: int, path: Path, num_bytes: int) -> NDArray[np.uint8]:
    if os.fstat(file).st_size < max(1, num_bytes):
        try:
            os.posix_fallocate(file, 0, max(1, num_bytes))
        except OSError as error:
            raise _no_room(error, num_bytes) from error
    view = mmap.mmap(file, max(1, num_bytes))
    weakref.finalize(view, _leave_if_in, os.getpid(), file, path)
    return _array(view, num_bytes)


def _array(view: mmap.mmap, num_bytes: int) -> NDArray[np.uint8]:
    return np.frombuffer(view, dtype=np.uint8, count=num_bytes)


def _leave_if_in(process: int, file: int, path: Path) -> None:
    """Leave the memory, unless this process was forked from the one that shares the lock."""
    if os.getpid() == process:
        _leave(file, path)
    else:
        os.close(file)


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


def _remove_abandoned(but: Path) -> None:
    for path in FOLDER.glob(f"{_PREFIX}{os.getuid()}-*"):
        if path == but:
            continue
        with suppress(OSError):  # removed meanwhile, or not ours
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            _leave(file, path)
