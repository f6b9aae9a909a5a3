"""Read the tables of a beton and refuse a file that is not whole."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from . import format

# Rows of a table that are compared at a time: temporary arrays stay in the processor's cache.
BLOCK = 1 << 15


class CustomFieldError(BetonError):
    """The class of a custom field was not given, so that the metadata cannot be read."""


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
    """The tables of a beton as they are in the file, right or wrong."""

    header: Any
    descriptors: NDArray[Any]
    fields: tuple[FieldInfo, ...]
    metadata: NDArray[Any]
    allocations: NDArray[Any]
    data_start: int
    """Where the tables at the beginning of the file end."""

    @property
    def data_end(self) -> int:
        """Where the allocation table starts."""
        return int(self.header["alloc_table_ptr"])


def read_tables(path: Path, custom_fields: Mapping[str, Any]) -> Tables:
    """Return the tables of a beton, checked against each other.

    Raises:
        FileNotFoundError: there is no such file.
        BetonError: the file is no finished, whole beton of version 2.
    """
    tables = load_tables(path, custom_fields)
    _check_allocations(tables, path)
    _check_pointers(tables.fields, tables.metadata, tables.allocations, path)
    return tables


def load_tables(path: Path, custom_fields: Mapping[str, Any]) -> Tables:
    """Read the tables of a beton, and check no more than that they can be told apart.

    Raises:
        FileNotFoundError: there is no such file.
        BetonError: the file is no beton of version 2, is unfinished, or ends within a table.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _read_header(stream, path, size)
        descriptors = _read(stream, format.FIELD, int(header["num_fields"]), path)
        fields, columns = _describe_fields(descriptors, custom_fields, path)
        dtype = format.metadata_dtype(columns)
        num_samples, table_at = int(header["num_samples"]), int(header["alloc_table_ptr"])
        data_start = stream.tell() + num_samples * dtype.itemsize
        if data_start > table_at:
            raise _damaged(path, f"metadata of {num_samples} samples overlaps other tables")
        metadata = _read(stream, dtype, num_samples, path)
        stream.seek(table_at)
        rows = (size - table_at) // format.ALLOCATION.itemsize
        allocations = _read(stream, format.ALLOCATION, rows, path)
    return Tables(header, descriptors, fields, metadata, allocations, data_start)


def _read_header(stream: Any, path: Path, size: int) -> Any:
    if size < format.HEADER.itemsize:
        raise _foreign(path, f"a file of {size} bytes")
    header = _read(stream, format.HEADER, 1, path)[0]
    if header["version"] != format.VERSION:
        raise BetonError(
            f"`path` must be a beton of version {format.VERSION}; got version "
            f"{header['version']} in {str(path)!r}. It is no beton, or FFCV changed its format: "
            "write it again with this tool or ffcv 1.0.2."
        )
    page_size = int(header["page_size"])
    if not header["num_fields"] or page_size == 0 or page_size & (page_size - 1):
        raise _foreign(path, f"{header['num_fields']} fields and a page size of {page_size}")
    table_at = int(header["alloc_table_ptr"])
    if table_at == 0:
        raise BetonError(
            f"`path` must be a finished beton; got {str(path)!r}, whose writer was stopped before "
            "the end. Write it again."
        )
    if table_at > size or (size - table_at) % format.ALLOCATION.itemsize:
        raise BetonError(
            f"`path` must be a whole beton; got {size} bytes in {str(path)!r}, whose allocation "
            f"table starts at byte {table_at}. The file is truncated or damaged: copy it again."
        )
    return header


def _read(stream: Any, dtype: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    data = stream.read(dtype.itemsize * count)
    if len(data) != dtype.itemsize * count:
        raise _damaged(path, "the file ends inside a table")
    return np.frombuffer(data, dtype=dtype)


def _describe_fields(
    descriptors: NDArray[Any], custom: Mapping[str, Any], path: Path
) -> tuple[tuple[FieldInfo, ...], list[np.dtype[Any]]]:
    fields, columns = [], []
    for position, descriptor in enumerate(descriptors):
        type_id = int(descriptor["type_id"])
        try:
            name = descriptor["name"].tobytes().split(b"\0")[0].decode("ascii")
            kind = format.FIELD_KINDS[type_id]
        except (UnicodeDecodeError, KeyError) as error:
            raise _foreign(path, f"a field of type {type_id}") from error
        if name in custom:
            columns.append(custom[name].from_binary(descriptor["arguments"]).metadata_type)
        elif type_id == format.CUSTOM_TYPE:
            raise CustomFieldError(
                f"{str(path)!r} has the custom field {name!r}. Pass the class that it was written "
                "with in `custom_fields`."
            )
        else:
            columns.append(format.FIELD_METADATA[type_id])
        fields.append(FieldInfo(name, kind, type_id, f"f{position}"))
    return tuple(fields), columns


def _check_allocations(tables: Tables, path: Path) -> None:
    table = tables.allocations
    bounds = (len(tables.metadata), tables.data_start, tables.data_end)
    for start in range(0, len(table), BLOCK):
        _check_extents(table[start : start + BLOCK], *bounds, path)


def _check_extents(
    table: NDArray[Any], num_samples: int, data_start: int, data_end: int, path: Path
) -> None:
    if table["sample_id"].max() >= num_samples:
        raise _damaged(path, f"an extent of sample {table['sample_id'].max()} of {num_samples}")
    # Sizes are compared first, so that `ptr + size` cannot wrap around.
    span = np.uint64(data_end - data_start)
    outside = (
        (table["size"] > span)
        | (table["ptr"] < np.uint64(data_start))
        | (table["ptr"] > np.uint64(data_end) - np.minimum(table["size"], span))
    )
    outside &= table["size"] > 0  # ffcv gives empty bytes at the very start a place at byte 0
    if outside.any():
        first = table[int(np.argmax(outside))]
        raise _damaged(path, f"sample {first['sample_id']} lies outside of the data region")


def _check_pointers(
    fields: tuple[FieldInfo, ...], metadata: NDArray[Any], allocations: NDArray[Any], path: Path
) -> None:
    # A table that was cut between two rows looks whole, but lacks the extents of some samples.
    starts = np.sort(allocations["ptr"])
    for field in fields:
        column = metadata[field.column]
        for values in format.pointers(column, field.kind):
            lost = _missing(np.sort(values), starts)
            if field.kind == "custom":
                lost = lost[lost != 0]  # such a field may mean by it that a sample has no bytes
            if lost.size:
                sample_id = int(np.argmax(values == lost[0]))
                raise _damaged(path, f"sample {sample_id} has no extent for {field.name!r}")


def _missing(wanted: NDArray[np.uint64], starts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the values of `wanted` that are not in `starts`; both ascend."""
    if np.array_equal(wanted, starts):
        return wanted[:0]
    if not starts.size:
        return wanted
    blocks = (wanted[at : at + BLOCK] for at in range(0, len(wanted), BLOCK))
    found = (starts.take(np.searchsorted(starts, block), mode="clip") == block for block in blocks)
    lost: NDArray[np.uint64] = wanted[~np.concatenate([np.zeros(0, dtype=np.bool_), *found])]
    return lost


def _damaged(path: Path, found: str) -> BetonError:
    return BetonError(
        f"`path` must be a whole beton; got {str(path)!r}: {found}. "
        "The file is truncated or damaged: copy or write it again."
    )


def _foreign(path: Path, found: str) -> BetonError:
    return BetonError(
        f"`path` must be a beton; got {str(path)!r} with {found}. Pass a file written by ffcv."
    )
