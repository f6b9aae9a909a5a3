"""Read JSON and arrays from files that may be damaged or hostile.

Nothing is executed, and sizes are compared with the file before memory is taken. Every fault of a
file is a ValueError; a file that cannot be read is an OSError.
"""

import errno
import hashlib
import io
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from types import UnionType
from typing import IO, Any, Literal, get_args, get_origin

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_MOST_JSON = 1 << 26  # bytes: parsed JSON can take twenty times the memory of its text
_MOST_DIRECTORY = 1 << 16  # bytes of a zip's table of members, where we write less than 1 kB
_LARGE = 1 << 31  # bytes from which a zip file needs a second kind of table
_LONGEST = 1 << 48  # length of a dimension
_NPY_HEAD = 1 << 14  # bytes: numpy reads headers of up to 10,000 characters
_PART = 1 << 20  # bytes that are read at a time
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# numpy evaluates the header of an array as a Python literal. The parser has these errors for some
# texts; the last three stand for nesting that is too deep and numbers that are too large.
_NOT_A_HEADER = (
    ValueError, TypeError, KeyError, SyntaxError, TokenError, struct.error,
    RecursionError, MemoryError, OverflowError,
)  # fmt: skip
_NOT_A_ZIP = (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, struct.error)


@contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading. Raise OSError for anything else, which might never end."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO waits for its writer
    try:
        with adding_filename(path):
            mode = os.fstat(file).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file")
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "it is a device, FIFO or socket, not a file")
            with os.fdopen(file, "rb", closefd=False) as stream:
                yield stream
    finally:
        os.close(file)


@contextmanager
def adding_filename(path: str | os.PathLike[str]) -> Iterator[None]:
    """Set `filename` of an OSError from a call that knows only a descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def identity_of(file: Path | int) -> tuple[int, ...]:
    """Return numbers that differ between files and between versions of a file.

    These are device, inode, size and time of the last change; () if there is no file.

    Args:
        file: path or descriptor of the file.
    """
    with suppress(OSError):
        found = os.fstat(file) if isinstance(file, int) else file.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return ()


def inode_of(file: Path | int) -> tuple[int, ...]:
    """Return device and inode of a file, which a rename keeps; () if there is no file."""
    return identity_of(file)[:2]


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_at(file: int, size: int, start: int) -> bytes:
    """Return `size` bytes of an open file from the byte `start`, or fewer at its end.

    Safe to call from several threads. The kernel may return less than was asked for: 2 GiB at most,
    and on network disks any number of bytes.
    """
    parts = []
    while size > 0 and (part := os.pread(file, size, start)):
        parts.append(part)
        size, start = size - len(part), start + len(part)
    return b"".join(parts)


def read_text(path: str | os.PathLike[str], most: int = _MOST_JSON) -> str:
    """Return the text of a file in UTF-8; raise ValueError for another file, or above `most` bytes.

    By default, a file may have 64 MiB. `most` is a multiple of 1 MiB.
    """
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return content.decode("utf-8-sig")  # editors on Windows put a mark of the encoding first


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raise ValueError if there is none."""
    if len(text) > _MOST_JSON:
        raise ValueError(f"its JSON has {len(text)} bytes; at most {_MOST_JSON} are read")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value of a JSON file; raise ValueError if the file is not JSON."""
    with open_file(path) as stream:
        return parse_json(stream.read(_MOST_JSON + 1))


def check_entries(
    value: Any, kinds: Mapping[str, Any], *, optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return the JSON object `value`, in which each entry that `kinds` names has its type.

    Other entries may be there too.

    Args:
        value: parsed JSON.
        kinds: type of each entry, such as `int`, `str | None`, `list[str]` or `dict[str, Any]`.
        optional: names of entries that may be missing.

    Raises:
        ValueError: `value` is not an object, or an entry is missing or has another type.
    """
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    for name, kind in kinds.items():
        if name not in value:
            if name not in optional:
                raise ValueError(f"it has no entry {name!r}")
        elif not _is_of(value[name], kind):
            words = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"its entry {name!r} is not of the type {words}")
    return value


def _is_of(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    if kind is Any:
        return True
    if kind is None:
        return value is None
    if isinstance(kind, UnionType):
        return any(_is_of(value, None if part is type(None) else part) for part in parts)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(each, parts[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_of(each, parts[1]) for each in value.values())
    return type(value) is kind  # True is no int


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array of numbers in a `.npy` file, read-only."""
    with open_file(path) as stream:
        return _array(stream, os.fstat(stream.fileno()).st_size)


def map_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Map the array of numbers in a `.npy` file into memory, read-only."""
    with open_file(path) as stream:
        shape, order, dtype, head = _layout(stream, os.fstat(stream.fileno()).st_size)
        return np.memmap(stream, dtype, "r", head.tell(), shape, order)


def read_npz(
    path: str | os.PathLike[str], names: Collection[str]
) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the arrays `names`, and the text in the array `header`, of an `.npz` file.

    Memory: the size of the file. Compressed files, which we do not write, are refused.
    """
    with open_file(path) as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        _check_directory(stream, num_bytes)
        try:
            with zipfile.ZipFile(stream) as archive:
                members = {name: archive.getinfo(f"{name}.npy") for name in (*names, "header")}
                if any(member.compress_type for member in members.values()):
                    raise ValueError("it is compressed")
                if sum(member.file_size for member in members.values()) > num_bytes:
                    raise ValueError("its arrays are larger than the file")
                arrays = {}
                for name, member in members.items():
                    with archive.open(member) as content:
                        arrays[name] = _array(content, member.file_size, "biufU")
        except (*_NOT_A_ZIP, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a wrong offset
                raise
            raise ValueError(f"it is not a complete .npz file: {error}") from error
    header = arrays.pop("header")
    if header.ndim or header.dtype.kind != "U":
        raise ValueError("its header is not a text")
    codes = header.astype(header.dtype.newbyteorder("<"), copy=False).tobytes()
    return arrays, codes.decode("utf-32-le").rstrip("\0")


def _check_directory(stream: IO[bytes], num_bytes: int) -> None:
    """Refuse a zip file with many members, whose table would take ten times its size in memory."""
    tail = os.pread(stream.fileno(), 42, max(0, num_bytes - 42))[-42:]
    is_large = num_bytes >= _LARGE
    size = int.from_bytes(tail[-10:-6], "little")
    if tail[-22:-18] != b"PK\5\6" or (tail[:4] == b"PK\6\7" and not is_large):
        raise ValueError("it is not a complete .npz file")
    if size > _MOST_DIRECTORY:
        raise ValueError("it holds too many arrays")


def _layout(
    stream: IO[bytes], num_bytes: int, kinds: str = "biuf"
) -> tuple[tuple[int, ...], Literal["F", "C"], np.dtype[Any], io.BytesIO]:
    """Return shape, order and dtype of the array in the next `num_bytes` bytes of a stream.

    Return the first bytes too, as a stream whose position is the end of the header.
    """
    head = io.BytesIO(stream.read(_NPY_HEAD))
    try:
        shape, is_fortran, dtype = _READERS[npy.read_magic(head)](head)
        # numpy's reader takes True for a length.
        is_sane = all(type(length) is int and 0 <= length < _LONGEST for length in shape)
        if not is_sane or dtype.kind not in kinds or not dtype.itemsize:
            raise ValueError(f"it holds {dtype} of shape {shape}")
        expected = math.prod(shape) * dtype.itemsize
    except _NOT_A_HEADER as error:
        raise ValueError(f"it does not hold an array of numbers: {error}") from error
    if head.tell() + expected != num_bytes:
        raise ValueError(
            f"its array {shape} of {dtype} takes {expected} bytes, but "
            f"{max(0, num_bytes - head.tell())} are there"
        )
    return shape, "F" if is_fortran else "C", dtype, head


def _array(stream: IO[bytes], num_bytes: int, kinds: str = "biuf") -> NDArray[Any]:
    shape, order, dtype, head = _layout(stream, num_bytes, kinds)
    data = np.empty(num_bytes - head.tell(), dtype=np.uint8)
    filled = head.readinto(data.data)
    # In parts, because a zip's members are copied. Its checksum is compared after the last one.
    while part := stream.readinto(data[filled : filled + _PART].data):  # type: ignore[attr-defined]
        filled += part
    if filled != len(data):
        raise ValueError("it was truncated while it was read")
    data.setflags(write=False)
    return np.ndarray(shape, dtype, data.data, order=order)
