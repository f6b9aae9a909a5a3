"""Write files and folders so that others see all of them or nothing, one process at a time.

Unfinished content is in `.NAME.part` next to `NAME`, locked by its writer (flock). A killed process
releases its locks, and the next writer uses what it left.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .stored import adding_filename

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
# File systems without locks; EBADF is NFS's error for the lock of a folder.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}
_PATIENCE = 2.0  # seconds for the workers of a killed process to end and release their lock
_TRIES_EVERY = 0.02  # seconds


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open `.NAME.part`, an empty file that is renamed to `path` when the block succeeds.

    A writer that fails or is killed leaves the old file or none, never half a file. The next writer
    of `path` uses the `.NAME.part` of a killed one. If `path` is a symbolic link to a file, the
    new file takes the place of the link, and the file that the link points to stays as it is.

    Some network file systems have no locks (flock). There, no lock is taken: two processes that
    write the same file at the same time may damage it.

    Raises:
        OSError: the file cannot be written: `path` is a folder, device, FIFO or socket, another
            process is writing it, or the disk is full.
    """
    target = Path(path)
    with locked_part(target) as stream:
        try:
            stream.truncate(0)
            yield stream
            publish(stream, part_path(target), target)
        except BaseException:
            if is_at(part_path(target), stream.fileno()):
                part_path(target).unlink()
            raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield `.NAME.part`, an empty folder that replaces the folder `path` when the block succeeds.

    If `path` is a symbolic link to a folder, that folder is replaced, and the link remains.

    A writer that fails or is killed leaves the old folder (or none, if there was none), never part
    of a new one. The block must flush its files to disk. Where the file system cannot exchange two
    folders in one step, the old folder is `.NAME.old` for a moment, and the next writer restores it
    after a kill.

    Raises:
        OSError: the folder cannot be written, or another process is writing it.
    """
    target = Path(path)
    target = target.resolve() if target.is_symlink() else target
    part, old = part_path(target), target.with_name(f".{target.name}.old")
    folder, replaced = lock_folder(part, target), list[int]()
    try:
        _clean_up(part, old, target)
        try:
            yield part
            if target.exists():
                replaced.append(lock_folder(target, target))  # it is `.NAME.part` from then on
            if not replaced or not _exchange(part, target):
                if replaced:
                    target.rename(old)
                part.rename(target)
        except BaseException:
            if is_at(part, folder):
                shutil.rmtree(part, ignore_errors=True)
            raise
        flush_folder(target.parent)
        for left in (part, old):
            if replaced and is_at(left, replaced[0]):  # not the next writer's `.NAME.part`
                shutil.rmtree(left, ignore_errors=True)
    finally:
        for file in (*replaced, folder):
            unlock(file)


def _clean_up(part: Path, old: Path, target: Path) -> None:
    """Restore the folder that a killed writer has moved to `old`, and delete what writers left."""
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (old, *part.iterdir()):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=left == old)  # its writer may be deleting it
        else:
            left.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step. Return False where that is not possible."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename is not None and rename(*names, _RENAME_EXCHANGE) == 0


def part_path(target: Path) -> Path:
    """Return the path of the unfinished file of `target`."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def locked_part(target: Path) -> Iterator[IO[bytes]]:
    """Open `.NAME.part`, the unfinished file of `target`, and lock it. Keep a killed run's content.

    Raises:
        OSError: see `atomic_open`.
    """
    check_is_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Links are not followed: the file of another program would be overwritten.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    file = lock(part_path(target), flags, target, _PATIENCE)
    # Mode "a+b" would append every write.
    stream = os.fdopen(file, "r+b", closefd=False)
    try:
        with adding_filename(target):
            yield stream
    finally:
        with suppress(OSError):  # the flush fails again after a block that failed
            stream.close()
        unlock(file)


def check_is_file(path: Path) -> None:
    """Raise OSError if there is a folder, device, FIFO or socket, or a link to one, at `path`."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder. Add a file name", str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(
            errno.EEXIST,
            "it is a device, FIFO or socket, not a file. Choose another path",
            str(path),
        )


def lock_folder(folder: Path, named: Path) -> int:
    """Lock a folder, which is made if necessary. See `lock`."""
    return lock(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, named, _PATIENCE)


def lock(path: Path, flags: int, named: Path, patience: float) -> int:
    """Open and lock a file or folder, which is made if necessary. Return its descriptor.

    The lock is held until `unlock`, or until the last process that has the descriptor ends. If
    another process moves or deletes the file before it is locked, the next file at `path` is
    locked. On a file system without locks, every lock is free.

    Args:
        path: the file, or the folder if `flags` has `os.O_DIRECTORY`.
        flags: flags of `os.open`.
        named: path that errors name.
        patience: seconds to wait for another process that holds the lock.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened, or is a device, FIFO or socket.
    """
    deadline = time.monotonic() + patience
    while True:
        if (file := _open(path, flags, named)) is not None:
            try:
                if _try_lock(file, named) and is_at(path, file):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        if time.monotonic() > deadline:
            why = "another process is writing it. Wait for that process, or stop it"
            raise BlockingIOError(errno.EAGAIN, why, str(named))
        time.sleep(_TRIES_EVERY)


def unlock(file: int) -> None:
    """Release the lock of a descriptor and close it, also if a forked process has a copy of it."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _open(path: Path, flags: int, named: Path) -> int | None:
    """Open a file or folder. Return None if another process deleted the folder meanwhile."""
    is_folder = bool(flags & os.O_DIRECTORY)
    try:
        if is_folder:
            path.mkdir(parents=True, exist_ok=True)
        else:
            check_is_file(path)
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if is_folder and error.errno in (errno.ENOENT, errno.EEXIST) and not path.exists():
            return None
        if error.errno == errno.ENAMETOOLONG:
            error.filename = str(named)
        raise


def _try_lock(file: int, named: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            error.filename = str(named)
            raise
    return True


def is_at(path: Path, file: int) -> bool:
    """Return whether an open file is at `path`: another process may have moved or deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def publish(stream: IO[bytes], temporary: Path, target: Path) -> None:
    """Flush the finished file `temporary`, open as `stream`, to disk and rename it to `target`."""
    try:
        stream.flush()
        os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        error.filename, error.filename2 = str(target), None
        raise
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, so that a power failure does not undo a rename."""
    with suppress(OSError):  # the file is in place, and not every file system can flush a folder
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def write_all(file: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data` at byte `position` of a file descriptor."""
    view = memoryview(data)
    while len(view):
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_open(path) as stream:
        stream.write(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented JSON. Raise ValueError for NaN and infinity."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
