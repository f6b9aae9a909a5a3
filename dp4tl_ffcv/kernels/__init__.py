"""Compiled kernels: counting for the scores; crops, resizing and colours for the decoders.

The kernels exported here check their arguments before compiled code runs, because numba does not
check bounds: they raise TypeError for a wrong type, and ValueError for a wrong shape or a value out
of range. A kernel gives the same bits for any number of threads. `tests/reference` holds a plain
numpy twin of each.
"""

from .histogram import class_histogram
from .members import class_members
from .nearest import nearest_mean
from .resize import resize_area
from .sums import class_sums

__all__ = [
    "class_histogram",
    "class_members",
    "class_sums",
    "nearest_mean",
    "resize_area",
]
