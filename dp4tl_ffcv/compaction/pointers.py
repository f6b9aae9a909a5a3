"""Find the parts of a beton's metadata that are byte offsets in the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton import format
from ..beton.index import BetonIndex
from ..errors import BetonError


@dataclass(frozen=True, slots=True)
class Pointer:
    """A part of the metadata that holds byte offsets in the file."""

    path: tuple[str, ...]
    """Names of the nested fields that lead to this part of a record."""
    rows: NDArray[np.int64]
    """Row in `Retained.extents` for each value `(M, values)`; -1 if the value points nowhere."""

    def of(self, metadata: NDArray[Any]) -> NDArray[np.uint64]:
        """Return a view `(M, values)` of this part of a metadata table."""
        return format.leaf(metadata, self.path)


def find_pointers(
    index: BetonIndex, metadata: NDArray[Any], extents: NDArray[Any], starts: NDArray[np.int64]
) -> Iterator[Pointer]:
    """Find all offsets that change when the samples' bytes move. See `Retained` for the arguments.

    The file does not say what the 64-bit numbers of a custom field mean. They are offsets if each
    is 0 or the start of an extent of the same sample. Extents without a pointer are an error,
    because nothing would lead to them after the move.
    """
    found = extents["size"] == 0
    for field in index.fields:
        custom = field.is_custom
        for path in format.uint64_paths(metadata.dtype[field.column], (field.column,)):
            if path[-1] == "size" and not custom:
                continue
            values = format.leaf(metadata, path)
            rows = _rows_of(values, _sizes_of(metadata, path), extents, starts)
            lost = (rows < 0) & ((values != 0) | (not custom))
            if not lost.any() and (rows >= 0).any():
                found[rows[rows >= 0]] = True
                yield Pointer(path, rows)
            elif lost.any() and (not custom or path[-1] in ("ptr", "data_ptr")):
                raise BetonError(
                    f"{str(index.path)!r} is corrupt: the field {field.name!r} of a retained "
                    "sample points to the bytes of another. Write the beton again."
                )
    custom_names = [field.name for field in index.fields if field.is_custom]
    if custom_names and not found.all():
        raise BetonError(
            f"no known field of {str(index.path)!r} points to {(~found).sum()} of its byte ranges. "
            f"Its custom fields ({', '.join(custom_names)}) must store the offset of a sample's "
            "bytes as an unsigned 64-bit number, or 0 for none."
        )


def _rows_of(
    values: NDArray[np.uint64],
    sizes: NDArray[Any] | None,
    extents: NDArray[Any],
    starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the row of the extent of its sample that starts at each value `(M, values)`, or -1.

    Where an empty extent starts at the same byte as another, `sizes` decides between them.
    """
    rows = np.full(values.shape, -1, dtype=np.int64)
    counts = np.diff(starts)
    for number in range(int(counts.max(initial=0))):
        samples = np.flatnonzero(counts > number)
        at = starts[samples] + number
        found = values[samples] == extents["ptr"][at][:, None]
        if sizes is not None:
            found &= (rows[samples] < 0) | (sizes[samples] != 0)
        rows[samples] = np.where(found, at[:, None], rows[samples])
    return rows


def _sizes_of(metadata: NDArray[Any], path: tuple[str, ...]) -> NDArray[Any] | None:
    """Return the `size` in the same record as the value at `path`, if each value has one."""
    record: NDArray[Any] = metadata
    for name in path[:-1]:
        record = record[name]
    if len(path) == 1 or "size" not in (record.dtype.names or ()):
        return None
    sizes = format.leaf(record, ("size",))
    return sizes if sizes.shape == format.leaf(metadata, path).shape else None
