"""Number of samples of each class."""

from typing import Any

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int, check_int_array
from .compiled import compiled

# Below this many labels, another thread costs more than it saves.
_LABELS_PER_THREAD = 1 << 18


@compiled()
def _count_range(labels: Any, counts: Any) -> None:
    # The last counter counts labels out of range; negative labels are huge as unsigned.
    # Four rows of counters alternate, because increments of one counter wait for each other.
    outside = np.uint64(counts.shape[1] - 1)
    first, second, third, fourth = counts[0], counts[1], counts[2], counts[3]
    whole = labels.size // 4 * 4
    for position in range(0, whole, 4):
        first[min(np.uint64(labels[position]), outside)] += 1
        second[min(np.uint64(labels[position + 1]), outside)] += 1
        third[min(np.uint64(labels[position + 2]), outside)] += 1
        fourth[min(np.uint64(labels[position + 3]), outside)] += 1
    for position in range(whole, labels.size):
        first[min(np.uint64(labels[position]), outside)] += 1


@compiled(parallel=True)
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
    """
    num_classes = check_int("num_classes", num_classes, 1)
    ids = check_int_array("labels", labels)
    num_slabs = max(1, min(get_num_threads(), ids.size // _LABELS_PER_THREAD))
    # Every thread adds integers to its own rows: no race, and one result for any thread count.
    # Four-byte counters, where they suffice, need half the cache.
    width = np.uint32 if ids.size < 1 << 32 else np.int64
    slabs = np.zeros((num_slabs, 4, num_classes + 1), dtype=width)
    if num_slabs == 1:
        _count_range(ids, slabs[0])
    else:
        _count_slabs(ids, slabs)
    counts: NDArray[np.int64] = slabs.sum(axis=(0, 1), dtype=np.int64)
    if counts[-1]:
        check_int_array("labels", labels, below=num_classes)  # raises
    return counts[:-1]
