"""Samples that belong to retained classes."""

from typing import Any

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import ArrayLike, NDArray

from ..validate import check_int_array
from .compiled import compiled

# Below this many labels, another thread costs more than it saves.
_LABELS_PER_THREAD = 1 << 17


@compiled(parallel=True)
def _count_slabs(labels: Any, retained: Any, counts: Any) -> None:
    # The last entry of `retained` is 2 and stands for labels out of range; negative labels are huge
    # as unsigned. Columns of `counts`: retained samples, labels out of range.
    outside, num_slabs = np.uint64(retained.size - 1), counts.shape[0]
    for slab in prange(num_slabs):
        found, wrong = 0, 0
        for at in range(slab * labels.size // num_slabs, (slab + 1) * labels.size // num_slabs):
            kind = retained[min(np.uint64(labels[at]), outside)]
            found += kind & 1
            wrong += kind >> 1
        counts[slab, 0], counts[slab, 1] = found, wrong


@compiled(parallel=True)
def _write_slabs(labels: Any, retained: Any, starts: Any, members: Any) -> None:
    # Every sample is written, and overwritten by the next one unless it is retained. This avoids a
    # branch that the processor cannot predict.
    num_slabs = starts.size - 1
    for slab in prange(num_slabs):
        at = slab * labels.size // num_slabs
        place, stop = starts[slab], starts[slab + 1]
        while place < stop:
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
    num_slabs = max(1, min(get_num_threads(), ids.size // _LABELS_PER_THREAD))
    counts = np.empty((num_slabs, 2), dtype=np.int64)
    _count_slabs(ids, kinds, counts)
    if counts[:, 1].any():
        check_int_array("labels", labels, below=len(flags))  # raises
    starts = np.concatenate(([0], np.cumsum(counts[:, 0])))
    members = np.empty(starts[-1], dtype=np.int64)
    _write_slabs(ids, kinds, starts, members)
    return members
