"""Files that pass between stages: written atomically, versioned, with provenance, never unpickled.

An artifact is an `.npz` of arrays and one JSON `header`, which holds the kind of file, the format
version and the provenance.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .errors import StaleArtifactError
from .version import __version__

_FORMAT_VERSION = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PATIENCE = 2.0  # seconds for the workers of a killed process to end and release their lock
# Errors that numpy, zipfile and json raise for damaged and foreign files.
_DAMAGE = (
    ValueError, KeyError, TypeError, EOFError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open `.NAME.part`, an empty file that is renamed to `path` when the block succeeds.

    A writer that fails or is killed leaves the old file or none, never half a file. The next writer
    of `path` uses the `.NAME.part` of a killed one. If `path` is a symbolic link to a file, the
    new file takes the place of the link, and the file that the link points to stays as it is.

    Raises:
        OSError: the file cannot be written: `path` is a folder, device, FIFO or socket, another
            process is writing it, the disk is full, or the file system has no locks.
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


def part_path(target: Path) -> Path:
    """Return the path of the unfinished file of `target`."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def locked_part(target: Path) -> Iterator[IO[bytes]]:
    """Open `.NAME.part`, the unfinished file of `target`, and lock it. Keep a killed run's content.

    Raises:
        OSError: see `atomic_open`.
    """
    part = part_path(target)
    check_is_file(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    file = _open_locked(part, target)
    # Mode "a+b" would append every write.
    stream = os.fdopen(file, "r+b", closefd=False)
    try:
        yield stream
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(target)  # errors of calls by descriptor name no file
        raise
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


def _open_locked(part: Path, target: Path) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            check_is_file(part)
            # Links are not followed: the file of another program would be overwritten.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(part, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                error.filename = str(target)
            raise
        try:
            if _is_locked(file, target) and _is_at(part, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if time.monotonic() > deadline:
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing it. Wait, or stop that one", str(target)
            )
        time.sleep(_PATIENCE / 50)


def _is_locked(file: int, target: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OSError(
            error.errno,
            f"its file system does not lock files ({error.strerror}). Write it elsewhere",
            str(target),
        ) from error
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
    with open(path, "rb") as stream:
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
    path: str | os.PathLike[str], kind: str, names: tuple[str, ...]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays `names` and the header of an artifact of `kind`, or raise ValueError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            found, version = header["kind"], header["format"]
            is_readable = found == kind and version <= _FORMAT_VERSION
            arrays = {name: stored[name] for name in names} if is_readable else {}
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened: errors while reading carry no file name
        raise ValueError(
            f"{str(path)!r} is damaged or not a {kind} file of dp4tl. Make it again."
        ) from error
    if found != kind:
        raise ValueError(f"{str(path)!r} is a {found} file; a {kind} file is needed.")
    if not is_readable:
        raise ValueError(
            f"{str(path)!r} was written by a newer dp4tl_ffcv (format {version}). Update yours."
        )
    return arrays, header


class Artifact:
    """Base class for dataclasses saved as one file of arrays and metadata."""

    __slots__ = ()
    KIND: ClassVar[str]
    ARRAYS: ClassVar[tuple[str, ...]]
    FACTS: ClassVar[tuple[str, ...]] = ("provenance",)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file `path` (`.npz`), atomically."""
        arrays = {name: getattr(self, name) for name in self.ARRAYS}
        facts = {name: getattr(self, name) for name in self.FACTS}
        facts |= {name: dict(fact) for name, fact in facts.items() if isinstance(fact, Mapping)}
        save_artifact(path, self.KIND, arrays, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote."""
        arrays, header = load_artifact(path, cls.KIND, cls.ARRAYS)
        return cls(**arrays, **{name: header[name] for name in cls.FACTS})

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
