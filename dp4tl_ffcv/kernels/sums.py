"""Feature sums of each class."""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from .checks import as_features, as_labels, as_num_classes
from .histogram import class_histogram

__all__ = ["class_sums"]

# Rows converted to a wider type at a time: bounds the copy of half-precision features.
_BLOCK_ROWS = 1 << 16


@njit(cache=True, nogil=True, parallel=True)
def _add_rows(features: Any, rows: Any, starts: Any, sums: Any) -> None:
    # A class belongs to one thread, which adds its rows in ascending order: the order of the
    # additions, and so every bit of the sum, depends neither on the threads nor on the blocks.
    for label in prange(sums.shape[0]):
        total = sums[label]
        for position in range(starts[label], starts[label + 1]):
            row = features[rows[position]]
            for column in range(row.size):
                total[column] += row[column]


def class_sums(
    features: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum the features of each class: `sums[c] = sum_{n: labels[n] = c} features[n]`.

    Memory beyond the arguments: `8 C D` bytes, and one block of 65,536 rows.

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
    values = as_features(features)
    ids = as_labels(labels, num_classes)
    if len(ids) != len(values):
        raise ValueError(
            f"`labels` must have one entry per row of `features`; got {len(ids)} labels and "
            f"{len(values)} rows. Pass the labels of the same samples."
        )
    sums = np.zeros((num_classes, values.shape[1]), dtype=np.float64)
    counts = np.zeros(num_classes, dtype=np.int64)
    wide = np.promote_types(values.dtype, np.float32)  # numba has no float16 on CPUs
    for start in range(0, len(values), _BLOCK_ROWS):
        block_ids = ids[start : start + _BLOCK_ROWS]
        block_counts = class_histogram(block_ids, num_classes)
        starts = np.concatenate(([0], np.cumsum(block_counts)))
        rows = np.argsort(block_ids, kind="stable")
        block = values[start : start + _BLOCK_ROWS].astype(wide, copy=False)
        _add_rows(block, rows, starts, sums)
        counts += block_counts
    return sums, counts
