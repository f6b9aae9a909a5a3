"""Exact nearest class mean of each sample, at the speed of a matrix product."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import as_features
from .compiled import compiled
from .intrinsics import exponential
from .threads import call_in_threads, one_blas_thread, threads_for

# Rows per matrix product. Blocks of fixed size, each on one BLAS thread, give the same bits for any
# number of threads. 1,024 rows x 1,000 classes in float32 are 4 MB, about one L2 cache.
_BLOCK_ROWS = 1024

# Classes per run. A run is searched only if its smallest gap is small enough.
_RUN = 64

# Squared distances of values up to this size fit into float64 for any number of columns.
_LARGEST = 1e150

# Soft votes use exact distances where the mean gap is below this many rounding errors.
_UNSURE = 10.0

_Buffers = tuple[NDArray[Any], NDArray[Any]]


@compiled()
def _squared_distance(row: Any, mean: Any) -> float:
    total = 0.0
    for column in range(row.size):
        difference = np.float64(row[column]) - mean[column]
        total += difference * difference
    return total


@compiled(fastmath={"reassoc"})
def _move(rows: Any, origin: Any, moved: Any, norms: Any) -> None:
    # The compiler may add in any order, because the norms only bound rounding errors.
    for row in range(rows.shape[0]):
        total = 0.0
        for column in range(origin.size):
            moved[row, column] = rows[row, column] - origin[column]
            value = np.float64(moved[row, column])
            total += value * value
        norms[row] = np.sqrt(total)


@compiled(fastmath={"nnan", "nsz"})  # allows a vector minimum
def _subtract_from(squared: Any, products: Any, lows: Any) -> None:
    # `lows` receives the smallest gap of each run of classes.
    for run in range(lows.size):
        first, stop = run * _RUN, min((run + 1) * _RUN, squared.size)
        low = squared[first] - products[first]
        for label in range(first, stop):
            gap = squared[label] - products[label]
            products[label] = gap
            low = min(low, gap)
        lows[run] = low


@compiled()
def _nearest(row: Any, means: Any, gaps: Any, lows: Any, limit: Any) -> int:
    # If several gaps lie within the rounding error of the smallest, their classes are compared
    # again in float64. The answer is that of an exact comparison.
    best, best_distance = -1, -1.0
    for run in range(lows.size):
        if lows[run] <= limit:
            for label in range(run * _RUN, min((run + 1) * _RUN, gaps.size)):
                if gaps[label] <= limit:
                    if best < 0:
                        best = label
                        continue
                    if best_distance < 0.0:
                        best_distance = _squared_distance(row, means[best])
                    distance = _squared_distance(row, means[label])
                    if distance < best_distance:
                        best, best_distance = label, distance
    return best


@compiled()
def _weigh(gaps: Any, smallest: Any, scale: Any) -> None:
    for label in range(gaps.size):
        gaps[label] = exponential((smallest - gaps[label]) * scale)


@compiled()
def _weigh_exactly(row: Any, means: Any, weights: Any) -> None:
    for label in range(weights.size):
        weights[label] = _squared_distance(row, means[label])
    smallest = weights.min()
    mean_gap = 0.0
    for label in range(weights.size):
        mean_gap += (weights[label] - smallest) / weights.size
    if mean_gap == 0.0:
        mean_gap = 1.0
    for label in range(weights.size):
        weights[label] = np.exp((smallest - weights[label]) / mean_gap)


@compiled(fastmath={"reassoc"})  # the order of additions depends on the number of classes only
def _add_votes(weights: Any, votes: Any) -> float:
    # Returns the vote for the class with the weight 1, the nearest.
    total = 0.0
    for label in range(weights.size):
        total += np.float64(weights[label])
    share = 1.0 / total
    for label in range(weights.size):
        votes[label] += weights[label] * share
    return share


@compiled()
def _vote(
    features: Any,
    means: Any,
    squared: Any,
    products: Any,
    mean_square: Any,
    slack: Any,
    nearest: Any,
    votes: Any,
    own: Any,
) -> None:
    # All steps of a row follow each other while the row is in the L1 cache. `squared - products`
    # are squared distances minus the row's own squared norm, in rounded arithmetic. Their mean is
    # the mean of `squared`, because the mean of the class means is the origin.
    exact = np.empty(squared.size, dtype=np.float64)
    lows = np.empty((squared.size + _RUN - 1) // _RUN, dtype=squared.dtype)
    for row in range(features.shape[0]):
        gaps = products[row]
        _subtract_from(squared, gaps, lows)
        smallest = lows.min()
        limit = gaps.dtype.type(smallest + slack[row])
        nearest[row] = _nearest(features[row], means, gaps, lows, limit)
        mean_gap = mean_square - np.float64(smallest)
        if mean_gap <= _UNSURE * slack[row]:
            _weigh_exactly(features[row], means, exact)
            own[row] = _add_votes(exact, votes)
        else:
            _weigh(gaps, smallest, gaps.dtype.type(1.0 / mean_gap))
            own[row] = _add_votes(gaps, votes)


def nearest_mean(
    features: ArrayLike, means: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Find the mean nearest to each sample: `nearest[n] = argmin_c ||features[n] - means[c]||_2`.

    The distances come from a matrix product. Near ties are compared again in float64, and exact
    ties go to the lowest class. Soft votes spread each sample over all classes,
    `votes[c] = sum_n softmax_c(-d_nc / s_n)`. Here `d_nc` is the squared distance minus the row's
    smallest, and `s_n`, the mean of `d_nc` over c, is a temperature per sample. Soft votes have the
    precision of the product: float64 for float64 `features`, otherwise float32.

    Args:
        features: `(N, D)`, float16, float32 or float64, finite and at most 1e150.
        means: `(C, D)`. A row with NaN is a class without samples and never nearest.

    Returns:
        Class ids `(N,)`; soft votes `(C,)`, zero for classes without samples; and the soft vote of
        each sample for its nearest class `(N,)`.
    """
    values = as_features(features)
    centres = as_features(means, "means").astype(np.float64)
    if values.shape[1] != centres.shape[1]:
        raise ValueError(
            f"`means` must have as many columns as `features`; got {centres.shape[1]} and "
            f"{values.shape[1]}. Were they computed with two surrogates?"
        )
    num_classes = len(centres)
    present = np.flatnonzero(~np.isnan(centres).any(axis=1))
    if not present.size:
        raise ValueError("every row of `means` contains NaN: no class has samples.")
    centres = np.ascontiguousarray(centres[present])
    _check_size(centres, "means")

    nearest = np.empty(len(values), dtype=np.int64)
    own = np.empty(len(values), dtype=np.float64)
    num_blocks = -(-len(values) // _BLOCK_ROWS)
    block_votes = np.zeros((num_blocks, len(present)), dtype=np.float64)
    dtype = np.promote_types(values.dtype, np.float32)
    product, wider = _Product(centres, dtype), _Product(centres, np.dtype(np.float64))
    threads = threads_for(num_blocks, 1)
    # One per thread, used for many blocks: new memory is slow.
    spare = [product.buffers(min(_BLOCK_ROWS, len(values))) for _ in range(threads)]

    def assign(block: int) -> None:
        rows = slice(block * _BLOCK_ROWS, (block + 1) * _BLOCK_ROWS)
        wide, buffers = values[rows].astype(dtype, copy=False), spare.pop()
        found = nearest[rows], block_votes[block], own[rows]
        if not product.vote(wide, buffers, *found):
            wider.vote(wide, wider.buffers(len(wide)), *found)
        spare.append(buffers)

    with one_blas_thread():
        call_in_threads(assign, num_blocks, threads)
    votes = np.zeros(num_classes, dtype=np.float64)
    votes[present] = block_votes.sum(axis=0)
    return present[nearest], votes, own


class _Product:
    """Squared distances of blocks of rows to the means, from matrix products in one precision."""

    def __init__(self, centres: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
        self._centres, self._dtype = centres, dtype
        # Moving rows and means keeps their distances, and smaller values give smaller errors.
        self._origin = centres.mean(axis=0)
        moved = centres - self._origin
        squared = np.einsum("cd,cd->c", moved, moved)
        with np.errstate(over="ignore"):
            self._doubled = np.ascontiguousarray((2.0 * moved).T, dtype=dtype)
            self._squared = squared.astype(dtype)
        self._mean_square = float(squared.mean())
        self._longest = float(np.sqrt(squared.max()))
        # D products and additions, the conversions and the moves each err by at most one unit
        # roundoff, relative to the value or to the smallest normal number.
        limits = np.finfo(dtype)
        self._roundoff = 2.0 * (centres.shape[1] + 10) * float(limits.eps)
        self._tiny, self._largest = float(limits.tiny), float(limits.max)

    def buffers(self, rows: int) -> _Buffers:
        """Allocate buffers for blocks of up to `rows` rows."""
        shapes = (rows, self._centres.shape[1]), (rows, len(self._centres))
        moved, products = (np.empty(shape, dtype=self._dtype) for shape in shapes)
        return moved, products

    def vote(
        self,
        rows: NDArray[Any],
        buffers: _Buffers,
        nearest: NDArray[Any],
        votes: NDArray[Any],
        own: NDArray[Any],
    ) -> bool:
        """Set the nearest class of each row and its soft vote, and add the soft votes of all.

        Return False, and change nothing, if squares might overflow in this precision.
        """
        moved, products = (array[: len(rows)] for array in buffers)
        norms = np.empty(len(rows), dtype=np.float64)
        _move(rows, self._origin, moved, norms)
        if not norms.max() <= _LARGEST:  # or NaN
            _check_size(rows, "features")
        with np.errstate(over="ignore", invalid="ignore"):
            reach = self._longest * (2.0 * norms + self._longest)
        if not 2.0 * reach.max() <= self._largest:
            return False
        np.matmul(moved, self._doubled, out=products)
        slack = self._roundoff * reach + self._tiny
        squares = self._squared, products, self._mean_square
        _vote(rows, self._centres, *squares, slack, nearest, votes, own)
        return True


def _check_size(values: NDArray[Any], name: str) -> None:
    largest = float(np.abs(values).max())
    if not largest <= _LARGEST:  # or NaN
        raise ValueError(f"`{name}` must be finite and at most {_LARGEST:g}; got {largest:g}.")
