"""Twin of `dp4tl_ffcv.kernels.nearest_mean`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def nearest_mean(
    features: ArrayLike, means: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Compare exact distances row by row, and add the softmax of each row to the votes."""
    rows = np.asarray(features, dtype=np.float64)
    centres = np.asarray(means, dtype=np.float64)
    present = np.flatnonzero(~np.isnan(centres).any(axis=1))
    nearest = np.zeros(len(rows), dtype=np.int64)
    votes = np.zeros(len(centres), dtype=np.float64)
    own = np.zeros(len(rows), dtype=np.float64)
    for n, row in enumerate(rows):
        squared = np.zeros(len(present), dtype=np.float64)
        for column in range(rows.shape[1]):  # column by column, which fixes the rounding
            squared += (row[column] - centres[present, column]) ** 2
        nearest[n] = present[np.argmin(squared)]
        gaps = squared - squared.min()
        if gaps.any():
            gaps /= gaps.mean()
        weights = np.exp(-gaps)
        votes[present] += weights / weights.sum()
        own[n] = weights.max() / weights.sum()
    return nearest, votes, own
