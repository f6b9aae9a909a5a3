"""Feature sums of each class."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int, check_int_array
from .checks import as_features
from .compiled import compiled
from .histogram import class_histogram
from .intrinsics import as_words, prefetch, widened
from .threads import call_in_threads, threads_for

# Rows that are grouped by class at a time: few enough that their features stay in the last-level
# cache, enough that each of a thousand classes has some.
_BLOCK_ROWS = 1 << 14

# Below this many values of a block, another thread costs more than it saves.
_VALUES_PER_THREAD = 1 << 17

_AHEAD = 8  # rows
_SLABS_PER_THREAD = 4  # so that a thread that finishes early takes over work
_LINE = 32  # float16 values in a cache line


@compiled()
def _sort_rows(ids: Any, starts: Any, rows: Any) -> None:
    ends = starts.copy()
    for row in range(ids.size):
        label = ids[row]
        rows[ends[label]] = row
        ends[label] += 1


@compiled()
def _add_class(features: Any, rows: Any, position: Any, stop: Any, total: Any) -> None:
    while position + 4 <= stop:  # four rows for each read and write of the total
        # The rows of a class are scattered, so the hardware does not prefetch them.
        for ahead in range(position + _AHEAD, min(position + _AHEAD + 4, rows.size)):
            for column in range(0, total.size, _LINE):
                prefetch(features, rows[ahead], column)
        first, second = features[rows[position]], features[rows[position + 1]]
        third, fourth = features[rows[position + 2]], features[rows[position + 3]]
        for column in range(total.size):
            value = total[column] + widened(first[column])
            value = value + widened(second[column])
            value = value + widened(third[column])
            total[column] = value + widened(fourth[column])
        position += 4
    while position < stop:
        row = features[rows[position]]
        for column in range(total.size):
            total[column] += widened(row[column])
        position += 1


@compiled()
def _add_classes(features: Any, rows: Any, starts: Any, first: int, stop: int, sums: Any) -> None:
    # One slab owns a class and adds its rows in ascending order, so the order of additions, and
    # every bit of the sum, is the same for any number of threads and any block size.
    for label in range(first, stop):
        _add_class(features, rows, starts[label], starts[label + 1], sums[label])


def _add_rows(
    features: NDArray[Any],
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    threads = threads_for(features.size, _VALUES_PER_THREAD)
    cuts = _cut(starts, _SLABS_PER_THREAD * threads)

    def add(slab: int) -> None:
        _add_classes(features, rows, starts, cuts[slab], cuts[slab + 1], sums)

    call_in_threads(add, len(cuts) - 1, threads)


def _cut(starts: NDArray[np.int64], num_slabs: int) -> NDArray[np.int64]:
    """Return bounds of slabs of classes with about equally many rows each."""
    num_slabs = min(num_slabs, len(starts) - 1)
    places = np.arange(num_slabs + 1) * starts[-1] // num_slabs
    cuts: NDArray[np.int64] = np.searchsorted(starts, places).astype(np.int64)
    np.minimum(cuts, len(starts) - 1, out=cuts)
    cuts[0], cuts[-1] = 0, len(starts) - 1
    return cuts


def class_sums(
    features: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum the features of each class: `sums[c] = sum_{n: labels[n] = c} features[n]`.

    Memory beyond the arguments: `8 C D` bytes and one block of row numbers.

    Args:
        features: `(N, D)`, float16, float32 or float64. Memory maps are read block by block.
        labels: integer class ids `(N,)`, each in `[0, num_classes)`.
        num_classes: C, at least 1.

    Returns:
        Sums `(C, D)`, accumulated in float64 in ascending sample order, and counts `(C,)`.
    """
    num_classes = check_int("num_classes", num_classes, 1)
    values = as_features(features)
    ids = check_int_array("labels", labels, below=num_classes)
    if len(ids) != len(values):
        raise ValueError(
            f"`labels` must have one entry per row of `features`; got {len(ids)} labels and "
            f"{len(values)} rows."
        )
    sums = np.zeros((num_classes, values.shape[1]), dtype=np.float64)
    counts = np.zeros(num_classes, dtype=np.int64)
    rows = np.empty(min(_BLOCK_ROWS, len(ids)), dtype=np.int64)
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        block_counts = class_histogram(ids[block], num_classes)
        starts = np.concatenate(([0], np.cumsum(block_counts)))
        _sort_rows(ids[block], starts, rows)
        _add_rows(as_words(values[block]), rows, starts, sums)
        counts += block_counts
    return sums, counts
