"""Loaders that read only the retained samples: a drop-in for `ffcv.loader.Loader`.

`loader` defines `PrunedLoader`, and `presets` builds the usual image loaders. `orders` holds the
orders of an epoch, `positions` computes what is left of one, and `state` saves how far the loop has
come. `reading` plans and makes the reads, `caches` keeps the bytes, `decoding` turns them into
images, `labels` renumbers the classes, and `ffcv_adapter` connects all this to ffcv.
"""

from ..ffcv_import import import_ffcv

import_ffcv()  # before anything below imports ffcv

from .caches import CACHES
from .decoding.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from .decoding.views import view_pipelines
from .labels import RemapLabel
from .loader import PrunedLoader
from .orders import ORDERS, Order
from .presets import evaluation_loader, training_loader

__all__ = [
    "CACHES",
    "ORDERS",
    "CenterCropRGBImageDecoder",
    "Order",
    "PrunedLoader",
    "RandomResizedCropRGBImageDecoder",
    "RemapLabel",
    "evaluation_loader",
    "training_loader",
    "view_pipelines",
]
