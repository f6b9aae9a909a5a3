"""Samples that belong to retained classes."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int_array
from .compiled import compiled
from .threads import call_in_threads, split

# Below this many labels, another thread costs more than it saves.
_LABELS_PER_THREAD = 1 << 17


@compiled()
def _count_range(labels: Any, retained: Any, counts: Any) -> None:
    # The last entry of `retained` is 2 and stands for labels out of range; negative labels are huge
    # as unsigned. `counts`: retained samples, labels out of range.
    outside = np.uint64(retained.size - 1)
    found, wrong = 0, 0
    for at in range(labels.size):
        kind = retained[min(np.uint64(labels[at]), outside)]
        found += kind & 1
        wrong += kind >> 1
    counts[0], counts[1] = found, wrong


@compiled()
def _write_range(labels: Any, at: int, retained: Any, members: Any) -> None:
    # Every sample from `at` is written, and overwritten by the next one unless it is retained. This
    # avoids a branch that the processor cannot predict.
    place = 0
    while place < members.size:
        members[place] = at
        place += retained[np.uint64(labels[at])]
        at += 1


def class_members(labels: ArrayLike, retained: ArrayLike) -> NDArray[np.int64]:
    """Find the samples of the retained classes: every n with `retained[labels[n]]`.

    Args:
        labels: integer class ids `(N,)`, each in `[0, C)`.
        retained: which classes are retained, bool `(C,)`.

    Returns:
        Sample ids `(M,)`, ascending.
    """
    flags = np.asarray(retained)
    if flags.dtype != np.bool_:
        raise TypeError(f"`retained` must be bool; got dtype {flags.dtype}.")
    if flags.ndim != 1:
        raise ValueError(f"`retained` must have shape (C,); got {flags.shape}.")
    ids = check_int_array("labels", labels)
    kinds = np.append(flags.astype(np.uint8), np.uint8(2))
    slabs = split(ids.size, _LABELS_PER_THREAD)
    counts = np.empty((len(slabs), 2), dtype=np.int64)
    call_in_threads(lambda slab: _count_range(ids[slabs[slab]], kinds, counts[slab]), len(slabs))
    if counts[:, 1].any():
        check_int_array("labels", labels, below=len(flags))  # raises
    members = np.empty(counts[:, 0].sum(), dtype=np.int64)
    parts = np.split(members, np.cumsum(counts[:-1, 0]))
    call_in_threads(
        lambda slab: _write_range(ids, slabs[slab].start, kinds, parts[slab]), len(slabs)
    )
    return members
