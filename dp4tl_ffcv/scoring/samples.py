"""Labelled rows and distances for methods that score samples, block by block."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..validate import check_int, check_int_array
from .inputs import as_array

_BLOCK_BYTES = 1 << 25  # of float64 at a time: memory maps may exceed the memory


def labelled(
    name: str, values: Any, labels: Any, num_classes: int | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return values `(N, D)` and labels `(N,)` in `[0, num_classes)`; by default, D classes."""
    from ..kernels.checks import as_features

    rows = as_features(as_array(values), name)
    count = rows.shape[1] if num_classes is None else check_int("num_classes", num_classes, 1)
    if not len(rows):
        raise ValueError(f"`{name}` must have at least one row; got none. Check the source.")
    ids = check_int_array("labels", as_array(labels), below=count)
    if len(ids) != len(rows):
        raise ValueError(
            f"`labels` must have one entry per row of `{name}`; got {len(ids)} labels and "
            f"{len(rows)} rows."
        )
    return rows, ids


def distances(
    values: NDArray[Any], centres: NDArray[Any], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `||values[n] - centres[places[n]]||_2` for each n, in float64."""
    found = np.empty(len(values), dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in blocks(values):
            gaps = values[rows].astype(np.float64)
            gaps -= centres[places[rows]]
            np.square(gaps, out=gaps)
            found[rows] = np.sqrt(gaps.sum(axis=1))  # the order of addition is fixed
    if not np.isfinite(found).all():
        raise ValueError("`source` holds NaN, inf or values whose squares overflow.")
    return found


def blocks(values: NDArray[Any], most_bytes: int | None = None) -> Iterator[slice]:
    """Yield slices of rows that take at most so many bytes as float64."""
    step = max(1, (most_bytes or _BLOCK_BYTES) // (8 * values.shape[1]))
    for start in range(0, len(values), step):
        yield slice(start, start + step)
