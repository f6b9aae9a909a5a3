"""Sums over features and logits, with the same bits on every machine."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs import as_array, check_finite

# Rows converted to float64 at a time. Extraction stores one sum per block: added in order,
# they have the same bits as a sum over all logits.
BLOCK_ROWS = 4096


def class_means(features: Any, labels: Any, num_classes: int) -> NDArray[np.float64]:
    """Average the features of each class or cluster.

    `mu[c] = mean_{n: labels[n] = c} g(x_n)`, summed in float64, without normalisation.

    Args:
        features: `(N, D)` of float16, float32 or float64; memory maps are read block by block.
        labels: class or cluster ids `(N,)`.
        num_classes: number of classes C.

    Returns:
        Means `(C, D)`; NaN rows for classes without samples.
    """
    from ...kernels import class_sums

    values = as_array(features)
    sums, counts = class_sums(values, as_array(labels), num_classes)
    if not np.isfinite(sums).all():
        check_finite("features", values)
        raise ValueError("the sum of the `features` of a class overflows. Check the encoder.")
    return means_from_sums(sums, counts)


def means_from_sums(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide sums `(C, D)` by counts `(C,)`; NaN rows where the count is 0."""
    means = np.full_like(sums, np.nan)
    present = counts > 0
    means[present] = sums[present] / counts[present, None]
    return means


def sum_soft_votes(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the soft votes `v[c] = sum_n softmax(logits[n])_c` `(C,)`, added up in float64."""
    return softmax_sums(logits)[0]


def softmax_sums(logits: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the soft votes `(C,)`, and each row's largest softmax output `(n,)`."""
    votes = np.zeros(logits.shape[1], dtype=np.float64)
    largest = np.empty(len(logits), dtype=np.float64)
    for start in range(0, len(logits), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        weights, totals = exponentials(logits[rows])
        votes += (weights / totals[:, None]).sum(axis=0)
        largest[rows] = 1 / totals  # the largest weight is 1
    return votes, largest


def exponentials(logits: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `exp(logits - max)` `(B, C)` and its row sums `(B,)`: softmax's two parts."""
    weights = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a difference of -inf gives the weight 0
        weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    return weights, weights.sum(axis=1)
