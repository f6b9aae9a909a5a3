"""Read the tables of a beton, and reject a file that is unfinished, truncated or corrupt."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from .format import (
    ALLOCATION,
    CUSTOM_TYPE,
    FIELD,
    FIELD_KINDS,
    FIELD_METADATA,
    HEADER,
    VERSION,
    metadata_dtype,
    pointers,
)

# Rows of a table that are checked at a time, so that temporary arrays fit the processor's cache.
BLOCK = 1 << 15


class CustomFieldError(BetonError):
    """The metadata cannot be read, because the class of a custom field was not passed."""


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field of a beton."""

    name: str
    kind: str
    type_id: int
    column: str
    """Name of its column in the metadata table: `f0`, `f1`, ..."""


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


def read_tables(path: Path, custom_fields: Mapping[str, Any]) -> Tables:
    """Read the tables of a beton and check them against each other."""
    tables = load_tables(path, custom_fields)
    for start in range(0, len(tables.allocations), BLOCK):
        _check_extents(tables, tables.allocations[start : start + BLOCK], path)
    _check_pointers(tables, path)
    return tables


def load_tables(path: Path, custom_fields: Mapping[str, Any]) -> Tables:
    """Read the tables of a beton. Check only the places of the tables."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _read_header(stream, path, size)
        descriptors = _read(stream, FIELD, int(header["num_fields"]), path)
        fields, columns = _describe_fields(descriptors, custom_fields, path)
        dtype = metadata_dtype(columns)
        num_samples, table_at = int(header["num_samples"]), int(header["alloc_table_ptr"])
        data_start = stream.tell() + num_samples * dtype.itemsize
        if data_start > table_at:
            raise _damaged(path, f"the metadata of {num_samples} samples overlaps other tables")
        metadata = _read(stream, dtype, num_samples, path)
        stream.seek(table_at)
        allocations = _read(stream, ALLOCATION, (size - table_at) // ALLOCATION.itemsize, path)
    return Tables(header, descriptors, fields, metadata, allocations, data_start)


def _read_header(stream: Any, path: Path, size: int) -> Any:
    if size < HEADER.itemsize:
        raise _foreign(path, f"it has {size} bytes")
    header = _read(stream, HEADER, 1, path)[0]
    if header["version"] != VERSION:
        raise _foreign(path, f"its format version is {header['version']}, not {VERSION}")
    page_size, table_at = int(header["page_size"]), int(header["alloc_table_ptr"])
    if not header["num_fields"] or page_size == 0 or page_size & (page_size - 1):
        raise _foreign(path, f"it has {header['num_fields']} fields and pages of {page_size} bytes")
    if table_at == 0:
        raise BetonError(f"{str(path)!r} is unfinished: its writer was stopped. Write it again.")
    if table_at > size or (size - table_at) % ALLOCATION.itemsize:
        raise _damaged(
            path, f"it has {size} bytes, and its allocation table starts at byte {table_at}"
        )
    return header


def _read(stream: Any, dtype: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    data = stream.read(dtype.itemsize * count)
    if len(data) != dtype.itemsize * count:
        raise _damaged(path, "it ends within a table")
    return np.frombuffer(data, dtype=dtype)


def _describe_fields(
    descriptors: NDArray[Any], custom: Mapping[str, Any], path: Path
) -> tuple[tuple[FieldInfo, ...], list[np.dtype[Any]]]:
    fields, columns = [], []
    for position, descriptor in enumerate(descriptors):
        type_id = int(descriptor["type_id"])
        try:
            name = descriptor["name"].tobytes().split(b"\0")[0].decode("ascii")
            kind = FIELD_KINDS[type_id]
        except (UnicodeDecodeError, KeyError) as error:
            raise _foreign(path, f"it has a field of unknown type {type_id}") from error
        if name in custom:
            columns.append(custom[name].from_binary(descriptor["arguments"]).metadata_type)
        elif type_id == CUSTOM_TYPE:
            raise CustomFieldError(
                f"{str(path)!r} has the custom field {name!r}. Pass the class that it was written "
                "with in `custom_fields`."
            )
        else:
            columns.append(FIELD_METADATA[type_id])
        fields.append(FieldInfo(name, kind, type_id, f"f{position}"))
    return tuple(fields), columns


def _check_extents(tables: Tables, rows: NDArray[Any], path: Path) -> None:
    largest, num_samples = rows["sample_id"].max(), len(tables.metadata)
    if largest >= num_samples:
        raise _damaged(path, f"it holds bytes of sample {largest}, but has {num_samples} samples")
    outside = ~tables.contains(rows["ptr"], rows["size"])
    outside &= rows["size"] > 0  # ffcv places empty bytes of the first samples at byte 0
    if outside.any():
        sample_id = rows["sample_id"][np.argmax(outside)]
        raise _damaged(path, f"the bytes of sample {sample_id} are outside of the data region")


def _check_pointers(tables: Tables, path: Path) -> None:
    # A table truncated between two rows looks complete, but lacks byte ranges of some samples.
    starts = np.sort(tables.allocations["ptr"])
    for field in tables.fields:
        for values in pointers(tables.metadata[field.column], field.kind):
            lost = _missing(np.sort(values), starts)
            if field.kind == "custom":
                lost = lost[lost != 0]  # a custom field may use 0 for "no bytes"
            if lost.size:
                sample_id = int(np.argmax(values == lost[0]))
                raise _damaged(path, f"the field {field.name!r} of sample {sample_id} has no bytes")


def _missing(wanted: NDArray[np.uint64], starts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the values of `wanted` that are not in `starts`. Both ascend."""
    if np.array_equal(wanted, starts):
        return wanted[:0]
    if not starts.size:
        return wanted
    found = starts.take(np.searchsorted(starts, wanted), mode="clip") == wanted
    return np.asarray(wanted[~found])


def _damaged(path: Path, found: str) -> BetonError:
    return BetonError(f"{str(path)!r} is truncated or corrupt: {found}. Copy it or write it again.")


def _foreign(path: Path, found: str) -> BetonError:
    return BetonError(
        f"{str(path)!r} is not a beton in FFCV's format (version {VERSION}): {found}. "
        "Pass a file that ffcv or `dp4tl write` wrote."
    )
