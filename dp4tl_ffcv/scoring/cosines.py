"""Cosines of rows of features, from matrix products of fixed shapes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .inputs import check_finite

# Rows and columns of a matrix product, which takes 16 MB. Products of fixed shapes, each on one
# BLAS thread, give the same bits for any number of threads.
_BLOCK = 2048

_Item = TypeVar("_Item")


def blocks_of(count: int) -> list[slice]:
    """Return slices of `range(count)` for the rows or columns of a product."""
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def unit_rows(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """Scale rows `(n, D)` to length 1; rows of zeros remain zeros. `name` is for the error."""
    check_finite(name, values)
    rows = values.astype(np.float64)
    _divide(rows, np.abs(rows).max(axis=1))  # so that squares do not overflow
    _divide(rows, np.sqrt(np.einsum("nd,nd->n", rows, rows)))
    return rows.astype(np.float32)


def _divide(rows: NDArray[np.float64], lengths: NDArray[np.float64]) -> None:
    rows /= np.where(lengths > 0, lengths, 1.0)[:, None]


def for_each(items: Sequence[_Item], function: Callable[[_Item], None]) -> None:
    """Call a function with each item, in threads. Each of its matrix products uses one thread."""
    from ..kernels.threads import call_in_threads, num_threads, one_blas_thread

    with one_blas_thread():
        call_in_threads(lambda at: function(items[at]), len(items), num_threads())
