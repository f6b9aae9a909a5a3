"""Twin of `dp4tl_ffcv.kernels.class_sums`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def class_sums(
    features: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Add row by row, in float64."""
    rows = np.asarray(features, dtype=np.float64)
    sums = np.zeros((num_classes, rows.shape[1]), dtype=np.float64)
    counts = np.zeros(num_classes, dtype=np.int64)
    for row, label in zip(rows, np.asarray(labels).tolist(), strict=True):
        sums[label] += row
        counts[label] += 1
    return sums, counts
