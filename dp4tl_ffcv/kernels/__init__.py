"""Counting kernels: class histogram, class sums, nearest class mean.

Each validates its arguments before any compiled code runs (numba does not check bounds), gives the
same bits for any number of threads, and has a numpy twin of the same name in `tests/reference`.
"""

from .histogram import class_histogram
from .nearest import nearest_mean
from .sums import class_sums

__all__ = ["class_histogram", "class_sums", "nearest_mean"]
