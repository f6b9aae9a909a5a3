"""Loaders that read the retained samples: a drop-in for `ffcv.loader.Loader`.

`loader` puts the parts together: what is retained (`extents`), in which order (`orders`), what is
read when (`plan`, `reading`) and kept where (`caches`, `shared_memory`, `memory`), how images are
decoded (`jpeg`, `decoders`, `views`, `workspace`) and how batches reach the loop (`iterator`).
"""

from ..ffcv_import import import_ffcv

import_ffcv()  # before anything below imports ffcv

from .caches.base import CACHES
from .decoding.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from .decoding.views import view_pipelines
from .labels import RemapLabel
from .loader import PrunedLoader
from .orders import ORDERS, Order, quasi_random_order, random_order, sequential_order
from .presets import evaluation_loader, training_loader
from .reading.plan import EpochPlan

__all__ = [
    "CACHES",
    "ORDERS",
    "CenterCropRGBImageDecoder",
    "EpochPlan",
    "Order",
    "PrunedLoader",
    "RandomResizedCropRGBImageDecoder",
    "RemapLabel",
    "evaluation_loader",
    "quasi_random_order",
    "random_order",
    "sequential_order",
    "training_loader",
    "view_pipelines",
]
