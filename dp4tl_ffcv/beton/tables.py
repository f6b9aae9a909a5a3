"""Read the tables of a beton, and reject a file that is unfinished, truncated or corrupt."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from ..stored import open_file
from .descriptors import FieldInfo, describe_fields
from .format import ALLOCATION, FIELD, HEADER, VERSION, metadata_dtype
from .rejected import damaged, foreign


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a beton, as stored in the file."""

    header: Any
    descriptors: NDArray[Any]
    fields: tuple[FieldInfo, ...]
    metadata: NDArray[Any]
    allocations: NDArray[Any]
    data_start: int
    """First byte after the metadata."""

    @property
    def data_end(self) -> int:
        """First byte of the allocation table."""
        return int(self.header["alloc_table_ptr"])

    def contains(self, ptr: NDArray[np.uint64], size: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which byte ranges lie between the metadata and the allocation table."""
        # Sizes are compared first, so that `ptr + size` cannot wrap around.
        start, end = np.uint64(self.data_start), np.uint64(self.data_end)
        fits = (size <= end - start) & (ptr >= start)
        inside: NDArray[np.bool_] = fits & (ptr <= end - np.minimum(size, end - start))
        return inside


def load_tables(path: Path, custom_fields: Mapping[str, Any]) -> Tables:
    """Read the tables of a beton. Check only the places of the tables."""
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _read_header(stream, path, size)
        num_fields, table_at = int(header["num_fields"]), int(header["alloc_table_ptr"])
        # Memory is taken only for tables that fit into the file.
        if stream.tell() + num_fields * FIELD.itemsize > table_at:
            raise damaged(path, f"the descriptors of {num_fields} fields overlap other tables")
        descriptors = _read(stream, FIELD, num_fields, path)
        fields, columns = describe_fields(descriptors, custom_fields, path)
        for field in fields:
            if field.value_bytes is not None and field.value_bytes > size:
                raise damaged(
                    path,
                    f"the arrays of its field {field.name!r} have {field.value_bytes} bytes, more "
                    "than the file",
                )
        dtype, num_samples = metadata_dtype(columns), int(header["num_samples"])
        data_start = stream.tell() + num_samples * dtype.itemsize
        if data_start > table_at:
            raise damaged(path, f"the metadata of {num_samples} samples overlaps other tables")
        metadata = _read(stream, dtype, num_samples, path)
        stream.seek(table_at)
        allocations = _read(stream, ALLOCATION, (size - table_at) // ALLOCATION.itemsize, path)
    return Tables(header, descriptors, fields, metadata, allocations, data_start)


def _read_header(stream: Any, path: Path, size: int) -> Any:
    if size < HEADER.itemsize:
        raise foreign(path, f"it has {size} bytes")
    header = _read(stream, HEADER, 1, path)[0]
    if header["version"] != VERSION:
        raise foreign(path, f"its format version is {header['version']}, not {VERSION}")
    page_size, table_at = int(header["page_size"]), int(header["alloc_table_ptr"])
    if not header["num_fields"] or page_size == 0 or page_size & (page_size - 1):
        raise foreign(path, f"it has {header['num_fields']} fields and pages of {page_size} bytes")
    if table_at == 0:
        raise BetonError(f"{str(path)!r} is unfinished: its writer was stopped. Write it again.")
    if table_at > size or (size - table_at) % ALLOCATION.itemsize:
        raise damaged(
            path, f"it has {size} bytes, and its allocation table starts at byte {table_at}"
        )
    return header


def _read(stream: Any, dtype: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    data = stream.read(dtype.itemsize * count)
    if len(data) != dtype.itemsize * count:
        raise damaged(path, "it ends within a table")
    return np.frombuffer(data, dtype=dtype)
