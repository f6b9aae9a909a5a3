"""Twin of `dp4tl_ffcv.kernels.nearest_mean`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def nearest_mean(
    features: ArrayLike, means: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`nearest[n] = argmin_c ||features[n] - means[c]||_2`, the lowest c of an exact tie.

    `mass[c] = sum_n softmax_c(-d_nc / s_n)`, where `d_nc` is the squared distance less the row's
    smallest and `s_n` the mean of `d_nc` over the classes whose means hold no NaN.
    """
    rows = np.asarray(features, dtype=np.float64)
    centres = np.asarray(means, dtype=np.float64)
    present = np.flatnonzero(~np.isnan(centres).any(axis=1))
    nearest = np.zeros(len(rows), dtype=np.int64)
    mass = np.zeros(len(centres), dtype=np.float64)
    for n, row in enumerate(rows):
        squared = np.zeros(len(present), dtype=np.float64)
        for column in range(rows.shape[1]):  # one column after another fixes the rounding
            squared += (row[column] - centres[present, column]) ** 2
        nearest[n] = present[np.argmin(squared)]
        gaps = squared - squared.min()
        if gaps.any():
            gaps /= gaps.mean()
        votes = np.exp(-gaps)
        mass[present] += votes / votes.sum()
    return nearest, mass
