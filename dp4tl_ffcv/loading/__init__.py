"""Loaders that read only the retained samples: a drop-in for `ffcv.loader.Loader`.

`loader` puts the parts together, and `presets` builds the usual image loaders. `orders` draw the
order of an epoch, `reading` plans and makes the reads, `caches` keep the bytes, `decoding` makes
images of them, `labels` numbers the classes, and `ffcv_adapter` fits all this to ffcv.
"""

from ..ffcv_import import import_ffcv

import_ffcv()  # before anything below imports ffcv

from .caches import CACHES
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
