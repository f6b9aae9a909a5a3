"""Number of samples of each class."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int, check_int_array
from .compiled import compiled
from .threads import call_in_threads, split

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
    slabs = split(ids.size, _LABELS_PER_THREAD)
    # Every thread adds integers to its own rows: no race, and one result for any thread count.
    # Four-byte counters, where they suffice, need half the cache.
    width = np.uint32 if ids.size < 1 << 32 else np.int64
    counters = np.zeros((len(slabs), 4, num_classes + 1), dtype=width)
    call_in_threads(lambda slab: _count_range(ids[slabs[slab]], counters[slab]), len(slabs))
    counts: NDArray[np.int64] = counters.sum(axis=(0, 1), dtype=np.int64)
    if counts[-1]:
        check_int_array("labels", labels, below=num_classes)  # raises
    return counts[:-1]
