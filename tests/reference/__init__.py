"""Numpy-only twins of the kernels: plain and slow implementations of the formulas."""

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
