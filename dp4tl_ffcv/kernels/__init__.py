"""Compiled kernels: counting for the scores; crops, resizing and colours for the decoders.

Every kernel checks its arguments before compiled code runs, because numba does not check bounds: it
raises TypeError for a wrong type, and ValueError for a wrong shape or a value out of range. A
kernel gives the same bits for any number of threads. `tests/reference` holds a plain numpy function
of the same name for each.
"""

from .crops import random_crops, random_flips
from .histogram import class_histogram
from .members import class_members
from .nearest import nearest_mean
from .resize import resize_area
from .sums import class_sums
from .ycc import ycc_to_rgb

__all__ = [
    "class_histogram",
    "class_members",
    "class_sums",
    "nearest_mean",
    "random_crops",
    "random_flips",
    "resize_area",
    "ycc_to_rgb",
]
