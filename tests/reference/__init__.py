"""Numpy-only twins: plain and slow implementations of the formulas."""

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
