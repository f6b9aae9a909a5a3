"""Find the parts of a beton's metadata that say where in the file something starts."""

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
    """A part of the metadata that says where in the file something starts."""

    path: tuple[str, ...]
    """Names that lead to it in the record of a sample."""
    rows: NDArray[np.int64]
    """Extent of each value `(M, values)`: row of `Retained.extents`, -1 where it points nowhere."""

    def of(self, metadata: NDArray[Any]) -> NDArray[np.uint64]:
        """Return this part of a metadata table `(M, values)`; writing to it writes the table."""
        return format.leaf(metadata, self.path)


def find_pointers(
    index: BetonIndex, metadata: NDArray[Any], extents: NDArray[Any], starts: NDArray[np.int64]
) -> Iterator[Pointer]:
    """Find what must move with the extents.

    The file does not say what a custom field keeps in 64 bits. It is taken for a place if it is
    one of the sample's own for every sample that does not have 0 there. A sample's bytes to which
    none leads could not be found again where they move to: this is an error.

    Args:
        index: the beton.
        metadata: records of some samples `(M,)`.
        extents: their extents `(R,)`; of those of a sample that start at one byte, the empty first.
        starts: extents `starts[i]` to `starts[i + 1]` are those of sample i.

    Raises:
        BetonError: a sample's metadata points to bytes that are not the sample's own, or what leads
            to its bytes cannot be told.
    """
    found = extents["size"] == 0
    for field in index.fields:
        custom = field.kind == "custom"
        for path in format.uint64_paths(metadata.dtype[field.column], (field.column,)):
            if path[-1] == "size" and not custom:
                continue
            values = format.leaf(metadata, path)
            rows = _rows_of(values, _sizes_beside(metadata, path), extents, starts)
            lost = (rows < 0) & ((values != 0) | (not custom))
            if not lost.any() and (rows >= 0).any():
                found[rows[rows >= 0]] = True
                yield Pointer(path, rows)
            elif lost.any() and (not custom or path[-1] in ("ptr", "data_ptr")):
                raise BetonError(
                    "`source` must hold the bytes of each sample as its own; got "
                    f"{str(index.path)!r}, where the field {field.name!r} of a retained sample "
                    "points to others. Write the beton again."
                )
    custom_names = [field.name for field in index.fields if field.kind == "custom"]
    if custom_names and not found.all():
        raise BetonError(
            "`custom_fields` must keep the place of each sample's bytes as an unsigned 64-bit "
            f"number, or 0 for none; got {str(index.path)!r}, which keeps the places of "
            f"{(~found).sum()} extents in another way. The custom fields are "
            f"{', '.join(custom_names)}: write the beton again with such ones."
        )


def _rows_of(
    values: NDArray[np.uint64],
    sizes: NDArray[Any] | None,
    extents: NDArray[Any],
    starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return which extent of its sample each value `(M, values)` is the start of, or -1.

    Where a value's empty bytes share their start with others, `sizes` tells the two apart.
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


def _sizes_beside(metadata: NDArray[Any], path: tuple[str, ...]) -> NDArray[Any] | None:
    """Return the `size` in the same record as the value at `path`, if there is one for each."""
    record: NDArray[Any] = metadata
    for name in path[:-1]:
        record = record[name]
    if len(path) == 1 or "size" not in (record.dtype.names or ()):
        return None
    sizes = format.leaf(record, ("size",))
    return sizes if sizes.shape == format.leaf(metadata, path).shape else None
