"""The binary layout of a beton: header, field descriptors, metadata, pages, allocation table.

ffcv 1.0.2 writes files of this layout. All integers are little-endian.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 2

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)

FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)

ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

CUSTOM_TYPE = 255
FIELD_KINDS = {
    0: "float",
    1: "int",
    2: "rgb_image",
    3: "bytes",
    4: "ndarray",
    5: "json",
    6: "torch_tensor",
    CUSTOM_TYPE: "custom",
}

_EXTENT = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
# Metadata of one sample, for each type of field.
FIELD_METADATA: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f8"),
    1: np.dtype("<i8"),
    2: _IMAGE,
    3: _EXTENT,
    4: np.dtype("<u8"),
    5: _EXTENT,
    6: np.dtype("<u8"),
}

JPG, RAW = 0, 1
IMAGE_MODES = {JPG: "jpg", RAW: "raw"}
LONGEST_SIDE = (1 << 16) - 1  # pixels: the metadata stores a side in 16 bits
LARGEST_PAGE = 1 << 31  # bytes: the header stores the page size, a power of two, in 32 bits

_POINTERS = {"data_ptr", "ptr"}
_BARE_POINTERS = {"ndarray", "torch_tensor"}


def header_bytes(num_fields: int, page_size: int, num_samples: int, alloc_table_ptr: int) -> bytes:
    """Return the header of a finished beton."""
    header = np.zeros(1, dtype=HEADER)
    header[0] = (VERSION, num_fields, page_size, num_samples, alloc_table_ptr)
    return header.tobytes()


def metadata_dtype(columns: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the record type of one sample: `f0`, `f1`, ... aligned as in a C struct."""
    return np.dtype([("", column) for column in columns], align=True)


def pointers(column: NDArray[Any], kind: str) -> list[NDArray[Any]]:
    """Return the parts of a metadata column that hold byte offsets of the samples' data."""
    if column.dtype.names:
        return [column[name] for name in column.dtype.names if name in _POINTERS]
    return [column] if kind in _BARE_POINTERS else []


def pixel_bytes(images: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the bytes of each image as raw pixels, given its record."""
    return np.asarray(3 * images["height"].astype(np.uint64) * images["width"])


def uint64_paths(
    dtype: np.dtype[Any], path: tuple[str, ...] = (), *, signed: bool = False
) -> Iterator[tuple[str, ...]]:
    """Yield the path of every unsigned 64-bit integer in a record type, as names of nested fields.

    `path` leads from the outermost record to `dtype`. With `signed`, signed integers are included.
    """
    for name in dtype.base.names or ():
        yield from uint64_paths(dtype.base[name], (*path, name), signed=signed)
    if dtype.base == np.uint64 or (signed and dtype.base == np.int64):
        yield path


def leaf(table: NDArray[Any], path: tuple[str, ...]) -> NDArray[Any]:
    """Return a view `(N, values)` of the part of a table at `path`."""
    for name in path:
        table = table[name]
    # copy=False raises where a view is impossible: writes to a copy would be lost.
    return np.reshape(table, (len(table), -1), copy=False) if table.ndim > 1 else table[:, None]
