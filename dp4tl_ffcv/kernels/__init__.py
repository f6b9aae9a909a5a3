"""Kernels: counting for the scores; cropping, resizing and colour conversion for the decoders.

Every kernel validates its arguments before compiled code runs (numba does not check bounds), gives
the same bits for any number of threads, and has a numpy twin of its name in `tests/reference`.
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
