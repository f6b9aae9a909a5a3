"""Twin of `dp4tl_ffcv.kernels.class_members`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def class_members(labels: ArrayLike, retained: ArrayLike) -> NDArray[np.int64]:
    """List every n with `retained[labels[n]]`."""
    flags = np.asarray(retained).tolist()
    found = [n for n, label in enumerate(np.asarray(labels).tolist()) if flags[label]]
    return np.array(found, dtype=np.int64)
