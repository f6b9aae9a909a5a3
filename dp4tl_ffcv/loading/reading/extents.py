"""The byte ranges of the retained samples."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...beton import BetonIndex
from ...beton.descriptors import FieldInfo
from ...beton.format import pointers


@dataclass(frozen=True, slots=True)
class RetainedExtents:
    """The byte ranges of S samples: R rows in the order of the file."""

    ptrs: NDArray[np.uint64]  # byte offset in the file (R,), ascending
    sizes: NDArray[np.int64]  # bytes (R,)
    owners: NDArray[np.int64]  # sample id (R,)
    samples: NDArray[np.int64]  # ids (S,), ascending
    rows: NDArray[np.int64]  # (R,): samples[i] has the rows rows[starts[i]:starts[i + 1]]
    starts: NDArray[np.int64]  # (S + 1,)

    @property
    def num_bytes(self) -> int:
        """Bytes of all samples."""
        return int(self.sizes.sum())

    def sample_at(self, offset: int) -> int:
        """Return the sample at `offset`, or the last one before it."""
        row = int(np.searchsorted(self.ptrs, np.uint64(offset), side="right")) - 1
        return int(self.owners[max(row, 0)])

    def rows_of(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the samples `ids` `(M,)`, and the position in `ids` of each row."""
        at = np.empty(len(ids), dtype=np.int64)
        order = np.argsort(ids)  # searching for ascending ids reads the table in order
        at[order] = np.searchsorted(self.samples, ids[order])
        counts = self.starts[at + 1] - self.starts[at]
        if len(counts) and counts.min() == counts.max() == 1:
            return self.rows[self.starts[at]], np.arange(len(ids))
        firsts = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(firsts, counts)
        rows = self.rows[np.repeat(self.starts[at], counts) + within]
        return rows, np.repeat(np.arange(len(ids)), counts)


def retained_extents(
    index: BetonIndex, ids: NDArray[np.int64], fields: Collection[str]
) -> RetainedExtents:
    """Collect the byte ranges of the samples `ids` in the fields named `fields`.

    Cost: one pass over the allocation table, then O(retained).
    """
    samples = ids if _ascends(ids) else np.unique(ids)
    table = index.extents(samples)
    used = [field for field in index.fields if field.name in fields]
    if not any(field.is_custom for field in used):  # whose pointers are unknown
        table = table[_is_wanted(index, samples, used, table)]
    if not table["size"].all():
        table = table[table["size"] > 0]  # nothing to read
    if not _ascends(table["ptr"]):
        # Of several values at one address, keep the largest.
        table = table[np.lexsort((table["size"], table["ptr"]))]
        table = table[np.append(table["ptr"][1:] != table["ptr"][:-1], True)]
    ptrs = np.ascontiguousarray(table["ptr"])
    owners = table["sample_id"].astype(np.int64)
    at = np.searchsorted(samples, owners)
    starts = np.concatenate(([0], np.cumsum(np.bincount(at, minlength=len(samples)))))
    rows = np.arange(len(at)) if _ascends(at) else np.argsort(at, kind="stable")
    return RetainedExtents(ptrs, table["size"].astype(np.int64), owners, samples, rows, starts)


def _ascends(values: NDArray[Any]) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _is_wanted(
    index: BetonIndex, samples: NDArray[np.int64], used: list[FieldInfo], table: NDArray[Any]
) -> NDArray[np.bool_]:
    """Return for each row of `table` whether a field in use points to it."""
    columns = {field.name: pointers(index.column(field.name), field.kind) for field in index.fields}
    names = {field.name for field in used}
    has_custom = any(field.is_custom for field in index.fields)
    if not has_custom and all(name in names for name, values in columns.items() if values):
        return np.ones(len(table), dtype=np.bool_)
    wanted = [values[samples] for name in names for values in columns[name]]
    return np.isin(table["ptr"], np.concatenate([table["ptr"][:0], *wanted]))
