"""Twin of `dp4tl_ffcv.kernels.class_histogram`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def class_histogram(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count label by label."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for label in np.asarray(labels).tolist():
        counts[label] += 1
    return counts
