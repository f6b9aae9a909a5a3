"""The class mean nearest to each sample, exactly, at the speed of a matrix product."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import get_num_threads, njit
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from .checks import as_features

__all__ = ["nearest_mean"]

# Rows per matrix product. A fixed block, each on one BLAS thread, makes the bits independent of
# the number of threads; 1,024 rows x 1,000 classes in float32 are 4 MB, about one L2 cache.
_BLOCK_ROWS = 1024

# Squared distances of values up to here fit into float64 for any number of columns.
_LARGEST = 1e150

# Soft votes are taken from exact distances where the mean gap is below so many rounding errors.
_UNSURE = 10.0


@njit(cache=True, nogil=True)
def _squared_distance(row: Any, mean: Any) -> float:
    total = 0.0
    for column in range(row.size):
        difference = np.float64(row[column]) - mean[column]
        total += difference * difference
    return total


@njit(cache=True, nogil=True)
def _nearest_rows(features: Any, means: Any, gaps: Any, slack: Any, nearest: Any) -> None:
    # `gaps` are squared distances less the row's own norm, in rounded arithmetic. Every class whose
    # gap lies within the rounding error of the smallest is measured again in float64, so the answer
    # is the one that exact comparison gives.
    for row in range(features.shape[0]):
        limit = gaps[row].min() + slack[row]
        best, best_distance = -1, np.inf
        for label in range(means.shape[0]):
            if gaps[row, label] <= limit:
                distance = _squared_distance(features[row], means[label])
                if best < 0 or distance < best_distance:
                    best, best_distance = label, distance
        nearest[row] = best


@njit(cache=True, nogil=True)
def _subtract_smallest(values: Any) -> Any:
    smallest, total = values.min(), 0.0
    for position in range(values.size):
        values[position] -= smallest
        total += values[position]
    return total / values.size


@njit(cache=True, nogil=True)
def _soft_votes(features: Any, means: Any, gaps: Any, slack: Any, mass: Any) -> None:
    num_classes = gaps.shape[1]
    weights = np.empty(num_classes, dtype=np.float64)
    for row in range(gaps.shape[0]):
        weights[:] = gaps[row]
        mean_gap = _subtract_smallest(weights)
        if mean_gap <= _UNSURE * slack[row]:
            for label in range(num_classes):
                weights[label] = _squared_distance(features[row], means[label])
            mean_gap = _subtract_smallest(weights)
        if mean_gap == 0.0:
            mean_gap = 1.0
        total = 0.0
        for label in range(num_classes):
            weights[label] = np.exp(-weights[label] / mean_gap)
            total += weights[label]
        for label in range(num_classes):
            mass[label] += weights[label] / total


def nearest_mean(
    features: ArrayLike, means: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the mean nearest to each sample: `nearest[n] = argmin_c ||features[n] - means[c]||_2`.

    The distances come from one matrix product; near ties are decided again in float64, and an
    exact tie goes to the lowest class. The soft votes spread each sample over all classes,
    `mass[c] = sum_n softmax_c(-d_nc / s_n)` with `d_nc` the squared distance less the smallest of
    the row and `s_n` the mean of `d_nc` over c: a temperature per sample, free of any scale.

    Args:
        features: `(N, D)`, float16, float32 or float64, finite and at most 1e150.
        means: `(C, D)`; a row with NaN is a class without samples and is never nearest.

    Returns:
        Class ids `(N,)` and soft votes `(C,)`, zero for classes without samples.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes do not fit, a value is not finite or too large, or every mean is NaN.
    """
    values = as_features(features)
    centres = as_features(means, "means").astype(np.float64)
    if values.shape[1] != centres.shape[1]:
        raise ValueError(
            f"`means` must have as many columns as `features`; got {centres.shape[1]} and "
            f"{values.shape[1]}. Take both from the same surrogate."
        )
    num_classes = len(centres)
    present = np.flatnonzero(~np.isnan(centres).any(axis=1))
    if not present.size:
        raise ValueError(
            "`means` must hold a class without NaN; got none. Check the features they came from."
        )
    centres = np.ascontiguousarray(centres[present])
    _check_size(centres, "means")

    nearest = np.empty(len(values), dtype=np.int64)
    starts = range(0, len(values), _BLOCK_ROWS)
    masses = np.zeros((len(starts), len(present)), dtype=np.float64)
    dtype = np.promote_types(values.dtype, np.float32)
    product, wider = _Product(centres, dtype), _Product(centres, np.dtype(np.float64))

    def assign(block: int) -> None:
        rows = slice(starts[block], starts[block] + _BLOCK_ROWS)
        wide = values[rows].astype(dtype, copy=False)
        _check_size(wide, "features")
        gaps, slack = product(wide)
        if not np.isfinite(gaps).all():  # huge values, whose squares overflow float32
            gaps, slack = wider(wide)
        _nearest_rows(wide, centres, gaps, slack, nearest[rows])
        _soft_votes(wide, centres, gaps, slack, masses[block])

    # The blocks already run in parallel, and one BLAS thread per block keeps the bits fixed.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(get_num_threads()) as pool:
        for _ in pool.map(assign, range(len(starts))):
            pass  # results are in place; the loop raises what a block raised
    mass = np.zeros(num_classes, dtype=np.float64)
    mass[present] = masses.sum(axis=0)
    return present[nearest], mass


class _Product:
    """Squared distances of a block less the rows' own norms, with their rounding error."""

    def __init__(self, centres: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        # Distances do not change when both sides move; small values leave small rounding errors.
        self._origin = centres.mean(axis=0)
        moved = centres - self._origin
        squared = np.einsum("cd,cd->c", moved, moved)
        with np.errstate(over="ignore"):
            self._doubled = np.ascontiguousarray((2.0 * moved).T, dtype=dtype)
            self._squared = squared.astype(dtype)
        self._longest = float(np.sqrt(squared.max()))
        # D products and additions, the conversions and the moves, each within one unit roundoff: of
        # the value, or of the smallest normal number where the value is smaller still.
        self._roundoff = 2.0 * (centres.shape[1] + 8) * float(np.finfo(dtype).eps)
        self._tiny = float(np.finfo(dtype).tiny)

    def __call__(self, block: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        with np.errstate(over="ignore", invalid="ignore"):
            moved = (block - self._origin).astype(self._dtype)
            gaps = self._squared - moved @ self._doubled
            norms = np.sqrt(np.einsum("nd,nd->n", moved, moved, dtype=np.float64))
            reach = self._longest * (2.0 * norms + self._longest)
        return gaps, self._roundoff * (reach + self._tiny)


def _check_size(values: NDArray[Any], name: str) -> None:
    largest = float(np.abs(values).max())
    if not largest <= _LARGEST:  # also where it is NaN
        raise ValueError(
            f"`{name}` must be finite and at most {_LARGEST:g}; got {largest:g}. "
            "Check the surrogate's outputs."
        )
