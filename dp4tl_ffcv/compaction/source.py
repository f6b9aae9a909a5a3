"""The beton that is compacted, open for reading. It must not change during the call."""

import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton import format
from ..beton.descriptors import FieldInfo
from ..beton.index import BetonIndex
from ..errors import BetonError
from ..stored import adding_filename, identity_of
from ..writing.build import DEFAULT_PAGE_SIZE


class SourceFile(io.FileIO):
    """A file open for reading, by any number of threads."""

    def __init__(self, path: Path) -> None:
        # Opening a FIFO would wait for its writer.
        super().__init__(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        self.path = path
        self.identity = identity_of(self.fileno())
        """`identity_of` the file when it was opened."""

    def read_at(self, offset: int, size: int) -> bytearray:
        """Return `size` bytes starting at `offset`, or raise BetonError if the file is shorter."""
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes starting at `offset`, or raise BetonError."""
        done = 0
        while done < len(buffer):
            with adding_filename(self.path):
                read = os.preadv(self.fileno(), (buffer[done:],), offset + done)
            if read == 0:
                raise BetonError(
                    f"{str(self.path)!r} is truncated: it has no byte {offset + done}. Restore it "
                    "and run this again."
                )
            done += read

    def check_unchanged(self) -> None:
        """Raise BetonError if the file was written to or replaced since it was opened."""
        if {identity_of(self.path), identity_of(self.fileno())} != {self.identity}:
            raise BetonError(
                f"{str(self.path)!r} changed while it was copied. Wait until nothing writes to "
                "it, and run this again."
            )


class SourceBeton:
    """The beton that is compacted: its file, its index, and the fields to keep.

    The file of an open index is read again, because it may have changed since.
    """

    def __init__(
        self,
        beton: str | os.PathLike[str] | BetonIndex,
        custom_fields: Mapping[str, Any] | None = None,
        fields: Collection[str] | None = None,
    ) -> None:
        if isinstance(beton, BetonIndex):
            custom_fields = custom_fields or beton.custom_fields
            beton = beton.path
        self.custom_fields = custom_fields or {}
        self.file = SourceFile(Path(beton))
        try:
            self.index = BetonIndex.open(beton, custom_fields=self.custom_fields)
            self.file.check_unchanged()
            self.kept = _kept_fields(self.index, fields)
        except BaseException:
            self.file.close()
            raise

    @property
    def dtype(self) -> np.dtype[Any]:
        """Record type of the new beton's metadata. Columns keep their names."""
        whole = self.index.metadata.dtype
        return np.dtype([(field.column, whole[field.column]) for field in self.kept], align=True)

    @property
    def page_size(self) -> int:
        """Bytes per page: those of the source, unless no page of it would fit into its file."""
        size, most = self.index.page_size, os.fstat(self.file.fileno()).st_size
        while size > max(most, DEFAULT_PAGE_SIZE):
            size //= 2
        return size

    def descriptors(self) -> NDArray[Any]:
        """Read the descriptors of the kept fields."""
        num_bytes = len(self.index.fields) * format.FIELD.itemsize
        data = self.file.read_at(format.HEADER.itemsize, num_bytes)
        kept = [field in self.kept for field in self.index.fields]
        return np.frombuffer(data, dtype=format.FIELD)[kept]

    def table_bytes(self, num_samples: int) -> int:
        """Return the bytes of the new header, descriptors and metadata."""
        fields = len(self.kept) * format.FIELD.itemsize
        return format.HEADER.itemsize + fields + num_samples * self.dtype.itemsize

    def __enter__(self) -> "SourceBeton":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _kept_fields(index: BetonIndex, names: Collection[str] | None) -> tuple[FieldInfo, ...]:
    if names is None:
        return index.fields
    wanted = {index.field(name).name for name in names}
    if not wanted:
        raise ValueError("`fields` is empty. Name at least one field.")
    for field in index.fields:
        # The allocation table does not tell to which field a byte range belongs.
        if field.name not in wanted and field.kind not in ("int", "float"):
            raise ValueError(f"`fields` must keep {field.name!r}: only numbers can be left out.")
    return tuple(field for field in index.fields if field.name in wanted)
