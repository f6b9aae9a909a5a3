"""Loaders that read the retained samples: a drop-in for `ffcv.loader.Loader`."""

from .images import evaluation_loader, training_loader
from .loader import PrunedLoader
from .orders import ORDERS, Order, random_order, sequential_order
from .remap import RemapLabel

__all__ = [
    "ORDERS",
    "Order",
    "PrunedLoader",
    "RemapLabel",
    "evaluation_loader",
    "random_order",
    "sequential_order",
    "training_loader",
]
