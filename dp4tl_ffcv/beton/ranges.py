"""Check the allocation table of a beton, and the records of its fields against it.

ffcv's decoders copy as many bytes as the allocation table says into memory for as many as the
record says. They check neither, so a difference would overwrite other memory.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BetonError
from .descriptors import FieldInfo
from .format import IMAGE_MODES, RAW, pixel_bytes, pointers
from .rejected import damaged
from .tables import Tables

# Rows of a table that are checked at a time, so that temporary arrays fit the processor's cache.
BLOCK = 1 << 15


def check_ranges(tables: Tables, path: Path) -> None:
    """Raise BetonError unless every record leads to bytes of its sample, as many as it says.

    Byte ranges must lie in the data, and must not overlap.

    Cost: O(R) for R byte ranges that are listed in the order of the file, else O(R log R).
    """
    for start in range(0, len(tables.allocations), BLOCK):
        _check_bounds(tables, tables.allocations[start : start + BLOCK], path)
    stored = _StoredRanges(tables.allocations)
    stored.check_overlaps(path)
    for field in tables.fields:
        column = tables.metadata[field.column]
        for places in pointers(column, field.kind):
            if field.is_custom:
                _check_custom(field, places, stored, path)
            else:
                _check_records(field, column, places, stored, path)


class _StoredRanges:
    """The byte ranges that are not empty, in the order of the file."""

    def __init__(self, table: NDArray[Any]) -> None:
        is_filled = table["size"] > 0
        self.empty = table["ptr"][~is_filled]
        """First byte of each empty byte range."""
        if len(self.empty):
            table = table[is_filled]
        starts = np.ascontiguousarray(table["ptr"])
        if (starts[1:] < starts[:-1]).any():
            order = np.argsort(starts, kind="stable")  # fast for the ascending runs of ffcv
            table, starts = table[order], starts[order]
        self.starts, self.sizes, self.owners = starts, table["size"], table["sample_id"]
        self._is_used = np.zeros(len(starts), dtype=np.bool_)

    def check_overlaps(self, path: Path) -> None:
        clash = self.starts[:-1] + self.sizes[:-1] > self.starts[1:]
        if clash.any():
            first = int(np.argmax(clash))
            one, other = self.owners[first : first + 2].tolist()
            raise damaged(path, f"bytes of sample {one} and bytes of sample {other} overlap")

    def find(self, places: NDArray[np.uint64]) -> NDArray[np.int64] | slice:
        """Return the row that starts at each place, or any row if there is none."""
        if np.array_equal(places, self.starts):
            return slice(None)
        # Sorted first, since searches for places in random order take longer than the sort.
        order = np.argsort(places, kind="stable")
        rows = np.empty(len(places), dtype=np.int64)
        rows[order] = np.searchsorted(self.starts, places[order])
        return np.minimum(rows, len(self.starts) - 1)

    def use(self, rows: NDArray[np.int64] | slice) -> NDArray[np.bool_]:
        """Mark rows as used. Return which of them were used before."""
        before = self._is_used[rows].copy()
        self._is_used[rows] = True
        return before


def _check_bounds(tables: Tables, rows: NDArray[Any], path: Path) -> None:
    largest, num_samples = rows["sample_id"].max(), len(tables.metadata)
    if largest >= num_samples:
        raise damaged(path, f"it holds bytes of sample {largest}, but has {num_samples} samples")
    outside = ~tables.contains(rows["ptr"], rows["size"])
    outside &= rows["size"] > 0  # ffcv places empty bytes of the first samples at byte 0
    if outside.any():
        sample_id = rows["sample_id"][np.argmax(outside)]
        raise damaged(path, f"the bytes of sample {sample_id} are outside of the data region")


def _check_custom(
    field: FieldInfo, places: NDArray[Any], stored: _StoredRanges, path: Path
) -> None:
    # A custom field may use 0 for "no bytes".
    lost = (places != 0) & ~np.isin(places, stored.starts) & ~np.isin(places, stored.empty)
    if lost.any():
        sample_id = np.argmax(lost.reshape(len(places), -1).any(axis=1))
        raise damaged(
            path, f"the field {field.name!r} of sample {sample_id} points to no stored bytes"
        )


def _check_records(
    field: FieldInfo,
    column: NDArray[Any],
    places: NDArray[np.uint64],
    stored: _StoredRanges,
    path: Path,
) -> None:
    samples = np.arange(len(places), dtype=np.uint64)

    def refuse(wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            sample_id = samples[np.argmax(wrong)]
            raise damaged(path, f"the field {field.name!r} of sample {sample_id} {what}")

    if field.kind in ("bytes", "json"):
        is_empty = column["size"] == 0
        if is_empty.any():
            refuse(is_empty & ~np.isin(places, stored.empty), "points to no stored bytes")
            column, places, samples = (each[~is_empty] for each in (column, places, samples))
    if not len(stored.starts):
        refuse(np.ones(len(samples), dtype=np.bool_), "points to no stored bytes")
        return  # no values
    rows = stored.find(places)
    refuse(stored.starts[rows] != places, "points to no stored bytes")
    refuse(stored.owners[rows] != samples, "points to bytes of another sample")
    refuse(stored.use(rows), "points to bytes of another field")
    sizes = stored.sizes[rows]
    if field.kind == "rgb_image":
        _check_modes(field, column["mode"], path)
        expected = np.where(column["mode"] == RAW, pixel_bytes(column), sizes)
    elif field.value_bytes is None:
        expected = column["size"]
    else:
        expected = np.full(len(sizes), field.value_bytes, dtype=np.uint64)
    wrong = sizes != expected
    if wrong.any():
        at = np.argmax(wrong)
        refuse(wrong, f"has {sizes[at]} bytes instead of {expected[at]}")


def _check_modes(field: FieldInfo, modes: NDArray[np.uint8], path: Path) -> None:
    unknown = ~np.isin(modes, list(IMAGE_MODES))
    if unknown.any():
        sample_id = np.argmax(unknown)
        raise BetonError(
            f"{str(path)!r} stores the image of sample {sample_id} in the field {field.name!r} as "
            f"mode {modes[sample_id]}, which ffcv does not read. Some forks of ffcv store PNGs "
            "this way. Write the beton again with `dp4tl write`."
        )
