"""Samples to write that lie in files or in tar archives, listed compactly and read when asked for.

A listing of a million images takes tens of bytes for each beside its name, and no Python object:
it is shared with forked workers, where touching an object copies its page of memory.
"""

import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = tarfile.BLOCKSIZE
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class _Names:
    """Strings as one blob of bytes and where each ends."""

    def __init__(self, blob: bytes, ends: NDArray[np.int64]) -> None:
        self._blob, self._ends = blob, ends

    @classmethod
    def of(cls, names: Iterable[str | os.PathLike[str]]) -> "_Names":
        blob, ends = bytearray(), array("q")
        for name in names:
            blob += os.fsencode(name)
            ends.append(len(blob))
        return cls(bytes(blob), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> str:
        start = int(self._ends[position - 1]) if position else 0
        return os.fsdecode(self._blob[start : int(self._ends[position])])


class _Labelled:
    """What samples of files and of archives have in common: numbers beside each image."""

    def __init__(self, count: int, labels: ArrayLike, identifiers: ArrayLike | None) -> None:
        self.labels = _column("labels", labels, count)
        """Class id of each image."""
        self.identifiers = (
            np.arange(count, dtype=np.int64)
            if identifiers is None
            else _column("identifiers", identifiers, count)
        )
        """Number of each image; by default its position."""

    def __len__(self) -> int:
        return len(self.labels)

    def _check(self, position: int) -> int:
        """Count a negative position from the end; IndexError ends an iteration."""
        if not -len(self) <= position < len(self):
            raise IndexError(f"`position` must be below {len(self)}; got {position}. Check it.")
        return position % len(self)


class ImageFiles(_Labelled, Sequence[tuple[Path, int, int]]):
    """Image files as samples (path, label, identifier), for fields of images and two integers."""

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        labels: ArrayLike,
        *,
        identifiers: ArrayLike | None = None,
    ) -> None:
        """Keep the paths; no file is opened.

        Args:
            paths: one for each image.
            labels: class id of each.
            identifiers: number of each; None numbers them in order.
        """
        self._paths = _Names.of(paths)
        super().__init__(len(self._paths), labels, identifiers)

    def __getitem__(self, position: int) -> tuple[Path, int, int]:  # type: ignore[override]  # one at a time
        i = self._check(position)
        return Path(self._paths[i]), int(self.labels[i]), int(self.identifiers[i])

    def name(self, position: int) -> str:
        """Return the path of an image."""
        return self._paths[self._check(position)]


class TarMembers:
    """Files within tar archives: what each is called and where its bytes lie."""

    def __init__(self, archives: Sequence[Path], names: _Names, spans: NDArray[np.int64]) -> None:
        self.archives = tuple(archives)
        """Paths of the archives."""
        self._names = names
        self._spans = spans  # (n, 3): number of the archive, first byte, bytes

    @classmethod
    def joined(cls, parts: Iterable["TarMembers"]) -> "TarMembers":
        """Return the members of several archives as one listing, in the order of `parts`."""
        parts = list(parts)
        archives: list[Path] = []
        spans = [np.zeros((0, 3), dtype=np.int64)]
        for part in parts:
            spans.append(part._spans + np.array([len(archives), 0, 0]))
            archives += part.archives
        names = _Names.of(name for part in parts for name in part.names())
        return cls(archives, names, np.concatenate(spans))

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each member."""
        return self._spans[:, 2]

    def name(self, position: int) -> str:
        """Return a member's path in its archive; that of an inner archive stands before it."""
        return self._names[position]

    def names(self) -> Iterator[str]:
        """Yield the name of each member."""
        return iter(self._names)

    def archive(self, position: int) -> Path:
        """Return the archive that holds a member."""
        return self.archives[int(self._spans[position, 0])]

    def read(self, position: int) -> bytes:
        """Return a member's bytes. Any process and thread may read at any time.

        Raises:
            ValueError: the archive is shorter than when it was listed.
        """
        _, start, size = self._spans[position].tolist()
        # Opened each time: this takes a hundredth of the time that decoding an image takes, and
        # nothing is shared between processes, threads and a thousand shards.
        handle = os.open(self.archive(position), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(handle, size, start)
        finally:
            os.close(handle)
        if len(data) != size:
            raise ValueError(
                f"`{self.archive(position)}` must be whole; got {len(data)} of {size} bytes of "
                f"{self.name(position)!r}. It has changed since it was listed: list it again."
            )
        return data

    def chosen(self, positions: ArrayLike) -> "TarMembers":
        """Return the members at `positions`, in that order."""
        ids = np.asarray(positions, dtype=np.int64)
        names = _Names.of(self._names[i] for i in ids.tolist())
        return TarMembers(self.archives, names, self._spans[ids])


class TarImages(_Labelled, Sequence[tuple[bytes, int, int]]):
    """Images within tar archives as samples (bytes, label, identifier); nothing is unpacked."""

    def __init__(
        self, members: TarMembers, labels: ArrayLike, *, identifiers: ArrayLike | None = None
    ) -> None:
        """Keep the listing; no archive is opened.

        Args:
            members: one for each image.
            labels: class id of each.
            identifiers: number of each; None numbers them in order.
        """
        self.members = members
        super().__init__(len(members), labels, identifiers)

    def __getitem__(self, position: int) -> tuple[bytes, int, int]:  # type: ignore[override]  # one at a time
        i = self._check(position)
        return self.members.read(i), int(self.labels[i]), int(self.identifiers[i])

    def name(self, position: int) -> str:
        """Return `ARCHIVE:MEMBER`."""
        i = self._check(position)
        return f"{self.members.archive(i)}:{self.members.name(i)}"


def list_tar(path: str | os.PathLike[str], *, nested: bool = False) -> TarMembers:
    """List the regular files of an uncompressed tar archive, reading nothing but its headers.

    Links, folders and devices are left out.

    Args:
        path: the archive.
        nested: look into members called `*.tar` too, whose files are then called
            `INNER.tar/NAME`; what is in those is not looked into further.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the archive is compressed, truncated, damaged or none.
    """
    archive = Path(path)
    names, ends, spans = bytearray(), array("q"), array("q")
    with open(archive, "rb", buffering=0) as stream:  # a header is a block: no more is read
        size = os.fstat(stream.fileno()).st_size
        for member in _files_of(archive, stream, 0, size):
            inner_end = member.offset_data + member.size
            found: Iterable[tuple[str, tarfile.TarInfo]] = [(member.name, member)]
            if nested and member.name.endswith(".tar"):
                inside = _files_of(archive, stream, member.offset_data, inner_end, member.name)
                found = ((f"{member.name}/{each.name}", each) for each in inside)
            for name, each in found:
                names += os.fsencode(name)
                ends.append(len(names))
                spans.extend((0, each.offset_data, each.size))
    listed = _Names(bytes(names), np.array(ends, dtype=np.int64))
    return TarMembers([archive], listed, np.array(spans, dtype=np.int64).reshape(-1, 3))


def _files_of(
    archive: Path, stream: IO[bytes], start: int, end: int, inner: str = ""
) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of the archive that lies in `stream` from `start` to `end`."""
    what = f"{archive}:{inner}" if inner else str(archive)
    # An archive within another is read in place, so that all positions are those in the file.
    stream.seek(start)
    _refuse_compressed(what, stream.read(_BLOCK)[:8])
    stream.seek(start)
    try:
        with tarfile.TarFile(fileobj=stream, mode="r", errorlevel=2) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or it would keep them all
                if member.issparse():
                    raise ValueError(
                        f"`{what}` must hold whole files; got the sparse file {member.name!r}. "
                        "Make the archive again without --sparse."
                    )
                if member.isreg():
                    yield member
            last = tar.offset
    except tarfile.TarError as error:
        if isinstance(error, tarfile.ReadError) and "end of data" in str(error):
            raise _truncated(what) from error
        raise _no_tar(what) from error
    # tarfile takes a damaged header for the end; the real one is a block of zeros. What it read
    # beyond the end of an inner archive, of the one after that, is refused here too.
    stream.seek(last)
    if last + _BLOCK > end:
        raise _truncated(what)
    if stream.read(_BLOCK).strip(b"\0"):
        raise _no_tar(what, f" with a damaged header at byte {last - start}")


def _refuse_compressed(what: str, head: bytes) -> None:
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise ValueError(
                f"`{what}` must be an uncompressed tar archive, whose files can be read in any "
                f"order; got one compressed by {kind}. Uncompress it (the files stay inside)."
            )


def _truncated(what: str) -> ValueError:
    return ValueError(
        f"`{what}` must be a whole tar archive; got one that ends early. Download or copy it again."
    )


def _no_tar(what: str, how: str = "") -> ValueError:
    return ValueError(
        f"`{what}` must be a tar archive; got another file or a damaged one{how}. "
        "Download or copy it again."
    )


def _column(name: str, values: ArrayLike, count: int) -> NDArray[np.int64]:
    given: NDArray[Any] = np.asarray(values)
    if given.shape != (count,) or (count and given.dtype.kind not in "iu"):
        raise ValueError(
            f"`{name}` must hold one integer for each of {count} images; got an array of shape "
            f"{given.shape} and type {given.dtype}. Check the listing."
        )
    return given.astype(np.int64)
