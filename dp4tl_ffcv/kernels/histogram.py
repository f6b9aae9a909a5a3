"""How often each class id occurs."""

from typing import Any

import numpy as np
from numba import get_num_threads, njit, prange
from numpy.typing import ArrayLike, NDArray

from .checks import as_labels, as_num_classes

__all__ = ["class_histogram"]

# Below this many labels a slab per thread costs more than it saves.
_LABELS_PER_THREAD = 1 << 16


@njit(cache=True, nogil=True)
def _count_range(labels: Any, counts: Any) -> None:
    for label in labels:
        counts[label] += 1


@njit(cache=True, nogil=True, parallel=True)
def _count_slabs(labels: Any, slabs: Any) -> None:
    num_slabs = slabs.shape[0]
    for slab in prange(num_slabs):
        start = slab * labels.size // num_slabs
        stop = (slab + 1) * labels.size // num_slabs
        _count_range(labels[start:stop], slabs[slab])


def class_histogram(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count the samples of each class: `counts[c] = sum_n 1[labels[n] = c]`.

    Args:
        labels: integer class ids `(N,)`, each in `[0, num_classes)`.
        num_classes: C, at least 1.

    Returns:
        Counts `(C,)`.

    Raises:
        TypeError: `labels` or `num_classes` are not integers.
        ValueError: a label is out of range, or a shape is wrong.
    """
    num_classes = as_num_classes(num_classes)
    ids = as_labels(labels, num_classes)
    num_slabs = max(1, min(get_num_threads(), ids.size // _LABELS_PER_THREAD))
    # One row per thread and integer addition: no atomics, no race, one answer for any thread count.
    slabs = np.zeros((num_slabs, num_classes), dtype=np.int64)
    if num_slabs == 1:
        _count_range(ids, slabs[0])
    else:
        _count_slabs(ids, slabs)
    counts: NDArray[np.int64] = slabs.sum(axis=0)
    return counts
