"""Files that pass between stages: written atomically, versioned, with provenance, never unpickled.

An artifact is an `.npz` of arrays and one JSON `header`, which holds the kind of file, the format
version and the provenance.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .errors import StaleArtifactError
from .stored import check_entries, naming, open_file, parse_json, read_npz
from .version import __version__

_FORMAT_VERSION = 1
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
# File systems without locks; EBADF is NFS's error for the lock of a folder.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}
_PATIENCE = 2.0  # seconds for the workers of a killed process to end and release their lock
# Facts that several kinds of artifacts keep in their provenance, if they know them.
_PROVENANCE = {
    "source_fingerprint": str | None,
    "clusters_sha256": str | None,
    "clusters": dict[str, Any],
    "silhouette": dict[str, Any] | None,
}


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open `.NAME.part`, an empty file that is renamed to `path` when the block succeeds.

    A writer that fails or is killed leaves the old file or none, never half a file. The next writer
    of `path` uses the `.NAME.part` of a killed one. If `path` is a symbolic link to a file, the
    new file takes the place of the link, and the file that the link points to stays as it is.

    A file system without locks (flock), as some network file systems are, is written without one:
    two processes that write the same file there at the same time may damage it.

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
            if _is_at(part_path(target), stream.fileno()):
                part_path(target).unlink()
            raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield `.NAME.part`, an empty folder that replaces the folder `path` when the block succeeds.

    A writer that fails or is killed leaves the old folder or none, never a part of one. The block
    must flush its files to disk. Where the file system cannot exchange two folders in one step, the
    old folder is `.NAME.old` for a moment, and the next writer restores it after a kill.

    Raises:
        OSError: the folder cannot be written, or another process is writing it.
    """
    target = Path(path)
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
            if _is_at(part, folder):
                shutil.rmtree(part, ignore_errors=True)
            raise
        flush_folder(target.parent)
        for left in (part, old):
            if replaced and _is_at(left, replaced[0]):  # not the next writer's `.NAME.part`
                shutil.rmtree(left, ignore_errors=True)
    finally:
        for file in (*replaced, folder):
            os.close(file)


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


def lock_folder(folder: Path, target: Path) -> int:
    """Lock a folder, which is made if necessary, and return the descriptor that holds the lock.

    The lock is held until the descriptor is closed. Raise BlockingIOError, which names `target`, if
    another process holds the lock.
    """
    return _open_locked(folder, target, os.O_RDONLY | os.O_DIRECTORY)


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
    file = _open_locked(part_path(target), target, os.O_RDWR | os.O_CREAT)
    # Mode "a+b" would append every write.
    stream = os.fdopen(file, "r+b", closefd=False)
    try:
        with naming(target):
            yield stream
    finally:
        with suppress(OSError):  # the flush fails again after a block that failed
            stream.close()
        os.close(file)


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


def _open_locked(part: Path, target: Path, flags: int) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        if (file := _open(part, target, flags)) is not None:
            try:
                if try_lock(file, target) and _is_at(part, file):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        if time.monotonic() > deadline:
            raise _busy(target)
        time.sleep(_PATIENCE / 50)


def _open(part: Path, target: Path, flags: int) -> int | None:
    """Open the unfinished `part`; None if its writer has just renamed or deleted the folder."""
    is_folder = bool(flags & os.O_DIRECTORY)
    try:
        if is_folder:
            part.mkdir(parents=True, exist_ok=True)
        else:
            check_is_file(part)
        # Links are not followed: the file of another program would be overwritten.
        return os.open(part, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if is_folder and error.errno == errno.ENOENT:
            return None
        if error.errno == errno.ENAMETOOLONG:
            error.filename = str(target)
        raise


def _busy(target: Path) -> BlockingIOError:
    return BlockingIOError(
        errno.EAGAIN,
        "another process is writing it. Wait for that process, or stop it",
        str(target),
    )


def try_lock(file: int, target: Path) -> bool:
    """Lock an open file or folder; return False if another process holds its lock.

    Where the file system has no locks, return True. Other errors name `target`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            error.filename = str(target)
            raise
    return True


def _is_at(path: Path, file: int) -> bool:
    """Return whether an open file is at `path`: another writer may have renamed or deleted it."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
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
        stream.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_artifact(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    header: Mapping[str, Any],
) -> None:
    """Write `arrays` and a JSON header (`header`, the kind and the versions) to an `.npz` file."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"`path` must end in .npz; got {str(path)!r}.")
    full = {**header, "kind": kind, "format": _FORMAT_VERSION, "tool": f"dp4tl_ffcv {__version__}"}
    with atomic_open(path) as stream:
        np.savez(stream, header=np.array(json.dumps(full)), **arrays)  # type: ignore[arg-type]  # numpy's stub takes the dict for allow_pickle


def load_artifact(
    path: str | os.PathLike[str], kind: str, names: Collection[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays `names` and the header of an artifact of `kind`, or raise ValueError."""
    try:
        header = check_entries(parse_json(read_npz(path, ())[1]), {"kind": str, "format": int})
        found, version = header["kind"], header["format"]
        is_readable = found == kind and version <= _FORMAT_VERSION
        arrays = read_npz(path, names)[0] if is_readable else {}
    except ValueError as error:
        raise _damaged(path, kind, error) from error
    if found != kind:
        raise ValueError(f"{str(path)!r} is a {found} file; a {kind} file is needed.")
    if not is_readable:
        raise ValueError(
            f"{str(path)!r} was written by a newer dp4tl_ffcv (format {version}). Update yours."
        )
    return arrays, header


def _damaged(path: str | os.PathLike[str], kind: str, error: Exception) -> ValueError:
    why = str(error).removesuffix(".")
    return ValueError(
        f"{str(path)!r} is damaged or not a {kind} file of dp4tl ({why}). Make it again."
    )


class Artifact:
    """Base class for dataclasses saved as one file of arrays and metadata."""

    __slots__ = ()
    KIND: ClassVar[str]
    ARRAYS: ClassVar[Mapping[str, tuple[Any, int]]]
    """Type and number of dimensions of each array."""
    FACTS: ClassVar[Mapping[str, Any]] = {"provenance": dict[str, Any]}
    """Type of each fact in the header, see `check_entries`."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Facts that files of earlier versions do not have."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file `path` (`.npz`), atomically."""
        arrays = {name: getattr(self, name) for name in self.ARRAYS}
        facts = {name: getattr(self, name) for name in self.FACTS}
        facts |= {name: dict(fact) for name, fact in facts.items() if isinstance(fact, Mapping)}
        save_artifact(path, self.KIND, arrays, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file is damaged, or is another kind of file.
        """
        arrays, header = load_artifact(path, cls.KIND, cls.ARRAYS)
        try:
            check_entries(header, cls.FACTS, optional=cls.OPTIONAL)
            check_entries(header["provenance"], _PROVENANCE, optional=_PROVENANCE)
            for name, (dtype, ndim) in cls.ARRAYS.items():
                if (found := arrays[name]).dtype != dtype or found.ndim != ndim:
                    raise ValueError(f"its {name} are {found.dtype} of shape {found.shape}")
            return cls(**arrays, **{name: header[name] for name in cls.FACTS if name in header})
        except (ValueError, TypeError) as error:
            raise _damaged(path, cls.KIND, error) from error

    @classmethod
    def of(cls, given: Self | str | os.PathLike[str]) -> Self:
        """Load `given` if it is a path; else return it."""
        return cls.load(given) if isinstance(given, str | os.PathLike) else given

    def _freeze(self, **arrays: NDArray[Any]) -> None:
        for name, values in arrays.items():
            values.setflags(write=False)
            object.__setattr__(self, name, values)


def check_fingerprint(what: str, expected: str | None, found: str, beton: Path) -> None:
    """Raise `StaleArtifactError` unless the artifact in the argument `what` was made for a beton.

    An artifact of bare arrays has None as its fingerprint and fits every beton.
    """
    if expected is not None and expected != found:
        raise StaleArtifactError(
            f"`{what}` was made for another beton, not for {str(beton)!r}. Pass that beton, or "
            f"make `{what}` for this one."
        )
