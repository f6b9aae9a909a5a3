"""Samples in image files or tar archives, for `write_beton`. They are read on demand.

A listing holds arrays, not Python objects: forked workers share it, and access to an object would
copy its page of memory.
"""

import os
import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..stored import open_file, read_at

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_NAME = 4096  # characters; the longest path on Linux
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Names(Sequence[str]):
    """Strings, stored in one blob of bytes."""

    def __init__(self, names: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._blob, self._ends = bytearray(), array("q")
        for name in names:
            self.append(name)

    def append(self, name: str | os.PathLike[str]) -> None:
        """Add a string."""
        self._blob += os.fsencode(name)
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, position: int) -> str:  # type: ignore[override]  # one at a time
        start = self._ends[position - 1] if position else 0
        return os.fsdecode(bytes(self._blob[start : self._ends[position]]))

    def path(self, position: int) -> Path:
        """Return a string as a path."""
        return Path(self[position])


class LazyImages(Sequence[tuple[Any, int, int]]):
    """Samples (image, label, identifier) whose images are read or made on demand.

    Args:
        image: returns the image at a position, in any form that `ImageField` takes.
        labels: class id of each image.
        identifiers: identifier of each image. None numbers them in order.
        name: returns the name of the image at a position, for messages.
    """

    def __init__(
        self,
        image: Callable[[int], Any],
        labels: ArrayLike,
        identifiers: ArrayLike | None = None,
        name: Callable[[int], str] = "image {}".format,
    ) -> None:
        count = np.size(labels)
        self.labels = _column("labels", labels, count)
        """Class id of each image."""
        given = np.arange(count) if identifiers is None else identifiers
        self.identifiers = _column("identifiers", given, count)
        """Identifier of each image."""
        self._image, self._name = image, name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:  # type: ignore[override]  # one at a time
        i = range(len(self))[position]
        return self._image(i), int(self.labels[i]), int(self.identifiers[i])

    def name(self, position: int) -> str:
        """Return the name of an image, without reading the image."""
        return self._name(position)


class ImageFiles(LazyImages):
    """Image files as samples (path, label, identifier). See `LazyImages`.

    Args:
        paths: path of each image, which is also its name. No file is opened.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        labels: ArrayLike,
        *,
        identifiers: ArrayLike | None = None,
    ) -> None:
        names = Names(paths)
        ids = _column("labels", labels, len(names))
        super().__init__(names.path, ids, identifiers, names.__getitem__)


class TarMembers:
    """Files in tar archives: their names, and the places of their bytes."""

    def __init__(self, archives: Sequence[Path], names: Names, spans: NDArray[np.int64]) -> None:
        self.archives = tuple(archives)
        """Paths of the archives."""
        self.names = names
        """Path of each member in its archive, after that of its inner archive if any."""
        self._spans = spans  # (n, 3): number of the archive, first byte, bytes

    @classmethod
    def joined(cls, parts: Iterable["TarMembers"]) -> "TarMembers":
        """Join several listings to one, in the order of `parts`."""
        parts = list(parts)
        archives: list[Path] = []
        spans = [np.zeros((0, 3), dtype=np.int64)]
        for part in parts:
            spans.append(part._spans + np.array([len(archives), 0, 0]))
            archives += part.archives
        names = Names(name for part in parts for name in part.names)
        return cls(archives, names, np.concatenate(spans))

    def __len__(self) -> int:
        return len(self._spans)

    def archive(self, position: int) -> Path:
        """Return the archive that holds a member."""
        return self.archives[int(self._spans[position, 0])]

    def full_name(self, position: int) -> str:
        """Return `ARCHIVE:MEMBER`."""
        return f"{self.archive(position)}:{self.names[position]}"

    def read(self, position: int) -> bytes:
        """Return the bytes of a member. Safe to call from several threads and processes.

        Raises:
            OSError: the archive cannot be read.
            ValueError: it is shorter than when it was listed.
        """
        _, start, size = self._spans[position].tolist()
        # Opening takes 1 % of the time to decode an image. A thousand archives cannot stay open.
        with open_file(self.archive(position)) as stream:
            data = read_at(stream.fileno(), size, start)
        if len(data) != size:
            raise ValueError(
                f"{str(self.archive(position))!r} changed after it was listed: it now holds "
                f"{len(data)} of {size} bytes of {self.names[position]!r}. Start again."
            )
        return data

    def chosen(self, positions: ArrayLike) -> "TarMembers":
        """Return the members at `positions`, in that order."""
        ids = np.asarray(positions, dtype=np.int64)
        names = Names(self.names[i] for i in ids.tolist())
        return TarMembers(self.archives, names, self._spans[ids])


class TarImages(LazyImages):
    """Images in tar archives as samples (bytes, label, identifier). See `LazyImages`.

    Args:
        members: the images, which are called `ARCHIVE:MEMBER`. Archives are not unpacked.
    """

    def __init__(
        self, members: TarMembers, labels: ArrayLike, *, identifiers: ArrayLike | None = None
    ) -> None:
        ids = _column("labels", labels, len(members))
        super().__init__(members.read, ids, identifiers, members.full_name)


def list_tar(path: str | os.PathLike[str], *, nested: bool = False) -> TarMembers:
    """List the regular files of an uncompressed tar archive. Only its headers are read.

    Links, folders and devices are left out.

    Args:
        path: the archive.
        nested: open members called `*.tar` and list their files as `INNER.tar/NAME`, one level
            deep.

    Raises:
        OSError: the file does not exist, cannot be read, or is a device, FIFO or folder.
        ValueError: the file is compressed, truncated, corrupt or not a tar archive.
    """
    archive, names, spans = Path(path), Names(), array("q")

    def add(member: tarfile.TarInfo, name: str) -> None:
        names.append(name)
        spans.extend((0, member.offset_data, member.size))

    with open_file(archive) as stream:
        file = stream.fileno()  # the stream's buffer would read more than the headers
        for member in _files_of(archive, file, 0, os.fstat(file).st_size):
            if nested and member.name.endswith(".tar"):
                start, end = member.offset_data, member.offset_data + member.size
                for inner in _files_of(archive, file, start, end, member.name):
                    add(inner, f"{member.name}/{inner.name}")
            else:
                add(member, member.name)
    return TarMembers([archive], names, np.array(spans, dtype=np.int64).reshape(-1, 3))


def _files_of(
    archive: Path, file: int, start: int, end: int, inner: str = ""
) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of the archive at bytes `start` to `end` of an open file."""
    what = repr(f"{archive}:{inner}" if inner else str(archive))
    head = read_at(file, 8, start)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise ValueError(
                f"{what} is compressed by {kind}, so that its files cannot be read in any order. "
                "Uncompress it to a plain tar archive."
            )
    with _tar_errors(what):
        # An inner archive is read in place, so that all offsets refer to the file.
        tar: Any = tarfile.TarFile(fileobj=_Window(file, start, end), mode="r", errorlevel=2)  # type: ignore[arg-type]  # it only reads
    for member in _members_of(tar, start, end, what):
        if member.issparse():
            raise ValueError(
                f"{what} holds the sparse file {member.name!r}, whose bytes are not contiguous. "
                "Make the archive again without --sparse."
            )
        if member.isreg():
            yield member
    # tarfile mistakes a corrupt header for the end of the archive, which is a block of zeros.
    last = tar.offset
    if last + _BLOCK > end:
        raise _damaged(what, "it is truncated")
    if read_at(file, _BLOCK, last).strip(b"\0"):
        raise _damaged(what, f"it has a corrupt header at byte {last - start}")


def _members_of(tar: Any, start: int, end: int, what: str) -> Iterator[tarfile.TarInfo]:
    while True:
        with _tar_errors(what):
            member = tar.next()
        if member is None:
            return
        tar.members.clear()  # tarfile would keep them all
        if tar.offset > end:
            raise _damaged(what, "it is truncated")
        if member.size < 0:  # it would lead back, and be read again and again
            raise _damaged(what, f"it has a corrupt header at byte {member.offset - start}")
        if len(member.name) > _LONGEST_NAME:  # one header may give all members a long name
            raise _damaged(what, f"it has a name of {len(member.name)} characters")
        yield member


class _Window:
    """A file up to the byte `end`, for `tarfile`, which reads what corrupt sizes ask for."""

    def __init__(self, file: int, start: int, end: int) -> None:
        self._file, self._at, self._end = file, start, end

    def seek(self, position: int) -> None:
        if position < 0:
            raise ValueError("a position before the file")
        self._at = position

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = read_at(self._file, min(size, self._end - self._at), self._at)
        self._at += len(data)
        return data


@contextmanager
def _tar_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise _damaged(what, "it is truncated, corrupt or not a tar archive") from error


def _damaged(what: str, how: str) -> ValueError:
    return ValueError(f"Cannot read the tar archive {what}: {how}. Download or copy it again.")


def _column(name: str, values: ArrayLike, count: int) -> NDArray[np.int64]:
    given: NDArray[Any] = np.asarray(values)
    if given.shape != (count,) or (count and given.dtype.kind not in "iu"):
        raise ValueError(
            f"`{name}` must hold one integer per image, {count} in all; got {given.dtype} of shape "
            f"{given.shape}."
        )
    return given.astype(np.int64)
