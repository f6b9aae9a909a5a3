"""Feature sums of each class."""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import ArrayLike, NDArray

from .checks import as_features, as_labels, as_num_classes
from .compiled import compiled
from .elementary import as_words, prefetch, widened
from .histogram import class_histogram

__all__ = ["class_sums"]

# Rows whose places are sorted at a time. The features of so many fit into the last level of a
# cache, where rows of one class are read from; a class then has some of them even of a thousand.
_BLOCK_ROWS = 1 << 14

_AHEAD = 4  # rows
_LINE = 32  # values of float16 in a line of the cache


@compiled()
def _sort_rows(ids: Any, starts: Any, rows: Any) -> None:
    ends = starts.copy()
    for row in range(ids.size):
        label = ids[row]
        rows[ends[label]] = row
        ends[label] += 1


@compiled(parallel=True)
def _add_rows(features: Any, rows: Any, starts: Any, sums: Any) -> None:
    # A class belongs to one thread, which adds its rows in ascending order: the order of the
    # additions, and so every bit of the sum, depends neither on the threads nor on the blocks.
    for label in prange(sums.shape[0]):
        total = sums[label]
        position, stop = starts[label], starts[label + 1]
        while position + 4 <= stop:  # the total is read and written once for four rows
            # Rows of a class lie apart, where the machine does not see them coming.
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


def class_sums(
    features: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum the features of each class: `sums[c] = sum_{n: labels[n] = c} features[n]`.

    Memory beyond the arguments: `8 C D` bytes, and the places of one block of rows.

    Args:
        features: `(N, D)`, float16, float32 or float64; a memory map is read block by block.
        labels: integer class ids `(N,)`, each in `[0, num_classes)`.
        num_classes: C, at least 1.

    Returns:
        Sums `(C, D)`, accumulated in float64 in ascending sample order, and counts `(C,)`.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a label is out of range, or shapes do not fit.
    """
    num_classes = as_num_classes(num_classes)
    values = as_words(as_features(features))
    ids = as_labels(labels, num_classes)
    if len(ids) != len(values):
        raise ValueError(
            f"`labels` must have one entry per row of `features`; got {len(ids)} labels and "
            f"{len(values)} rows. Pass the labels of the same samples."
        )
    sums = np.zeros((num_classes, values.shape[1]), dtype=np.float64)
    counts = np.zeros(num_classes, dtype=np.int64)
    rows = np.empty(min(_BLOCK_ROWS, len(ids)), dtype=np.int64)
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        block_counts = class_histogram(ids[block], num_classes)
        starts = np.concatenate(([0], np.cumsum(block_counts)))
        _sort_rows(ids[block], starts, rows)
        _add_rows(values[block], rows, starts, sums)
        counts += block_counts
    return sums, counts
