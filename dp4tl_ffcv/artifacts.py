"""Files that pass between stages: written atomically, versioned, with provenance, never unpickled.

An artifact is an `.npz` whose arrays stand beside one JSON `header` that says what kind of file
it is, which format version it has and where it came from (DESIGN section 4).
"""

import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import StaleArtifactError
from .version import __version__

_FORMAT_VERSION = 1
_HASH_BLOCK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PATIENCE = 2.0  # seconds that the workers of a killed process may take to end, and to let go
# Errors that numpy, zipfile and json raise for damaged and foreign files.
_DAMAGE = (
    ValueError, KeyError, TypeError, EOFError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that takes its name only when the block succeeds.

    A killed or failing writer leaves the old file, or none; never half a file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            publish(stream, Path(name), target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def part_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Do as `atomic_open`, for files so large that a killed run must not leave one for ever.

    The temporary file is `.NAME.part`: the next run for `path` takes it over and starts anew.

    Raises:
        BlockingIOError: another process writes to `path`.
    """
    target = Path(path)
    with locked_part(target) as stream:
        try:
            stream.truncate(0)
            yield stream
            publish(stream, part_path(target), target)
        except BaseException:
            part_path(target).unlink(missing_ok=True)
            raise


def part_path(target: Path) -> Path:
    """Return where the unfinished file of `target` lies."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def locked_part(target: Path) -> Iterator[IO[bytes]]:
    """Open the unfinished file of `target`, new or as a killed run left it, for this process alone.

    Raises:
        BlockingIOError: another process writes to `target`.
        IsADirectoryError: `target` is a folder.
    """
    if target.is_dir():
        raise IsADirectoryError(
            f"`path` must name a file; got the folder {str(target)!r}. Add the name of a file."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part, deadline = part_path(target), time.monotonic() + _PATIENCE
    while True:
        # Not "a+b", with which every write would go to the end.
        stream = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        with stream:
            # Whoever held the lock before may have renamed or deleted the file.
            if _lock(stream) and part.exists() and os.path.samestat(part.stat(), _stat(stream)):
                try:
                    yield stream
                except OSError as error:
                    if error.errno in _FULL and error.filename is None:
                        error.filename = str(target)  # calls by descriptor name no file
                    raise
                return
        if time.monotonic() > deadline:
            raise BlockingIOError(
                f"`path` must be written by one process at a time; got {str(target)!r}, which "
                "another writes now. Wait for it, or stop it."
            )
        time.sleep(_PATIENCE / 50)


def _lock(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stat(stream: IO[bytes]) -> os.stat_result:
    return os.fstat(stream.fileno())


def publish(stream: IO[bytes], temporary: Path, target: Path) -> None:
    """Give the finished file `temporary`, open as `stream`, its name, once it is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(target)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_open(path) as stream:
        stream.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def save_artifact(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    header: Mapping[str, Any],
) -> None:
    """Write an artifact: `arrays`, and a JSON header of `kind`, versions and `header`.

    Raises:
        ValueError: `path` does not end in `.npz`.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"`path` must end in .npz; got {str(path)!r}. Rename the output file.")
    full = {**header, "kind": kind, "format": _FORMAT_VERSION, "tool": f"dp4tl_ffcv {__version__}"}
    with atomic_open(path) as stream:
        np.savez(stream, header=np.array(json.dumps(full)), **arrays)  # type: ignore[arg-type]  # numpy's stub takes the dict for allow_pickle


def load_artifact(
    path: str | os.PathLike[str], kind: str, names: tuple[str, ...]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays `names` and the header of an artifact of `kind`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no artifact, of another kind, or of a newer format.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            found, version = header["kind"], header["format"]
            is_readable = found == kind and version <= _FORMAT_VERSION
            arrays = {name: stored[name] for name in names} if is_readable else {}
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened; errors while reading carry no file name
        raise ValueError(
            f"{str(path)!r} is not a {kind} file of dp4tl, or it is damaged. Make it again."
        ) from error
    if found != kind:
        raise ValueError(f"{str(path)!r} is a {found} file; a {kind} file is needed.")
    if not is_readable:
        raise ValueError(
            f"{str(path)!r} was written by a newer dp4tl_ffcv (format {version}). Update yours."
        )
    return arrays, header


def check_fingerprint(what: str, expected: str | None, found: str) -> None:
    """Raise `StaleArtifactError` unless `what` was made for the beton whose fingerprint is `found`.

    `expected` is what the artifact recorded; None (made from bare arrays) fits every beton.
    """
    if expected is not None and expected != found:
        raise StaleArtifactError(
            f"`{what}` must be made for this beton; got one made for fingerprint "
            f"{expected[:16]}, this beton has {found[:16]}. Make it again from this beton."
        )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
