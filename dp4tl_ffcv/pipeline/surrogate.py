"""A cheap surrogate for a source of one's own."""

from typing import Any

import numpy as np

from ..beton import BetonIndex
from ..torchrun import torchrun

_LARGE = 96  # pixels: the shorter side from which images are no thumbnails
_STEPS = 64  # of an epoch, at least


def surrogate_settings(source: BetonIndex) -> dict[str, Any]:
    """Return settings of `dp4tl pretrain` for a small classifier of a source.

    A narrow network, and half of the resolution that one would pretrain with; all samples, for as
    many epochs as a pretraining. `python -m benchmarks.surrogates` compares such surrogates on the
    digits of the demo. Crops have at least half of the image: smaller ones harmed feature mapping
    in a try on these digits. Images are not mirrored, since the mirror images of some classes,
    such as digits, are other classes.

    Args:
        source: a beton with the field `image`.
    """
    images = source.column("image")
    side = float(np.median(np.minimum(images["width"], images["height"])))
    is_large = side >= _LARGE
    batch_size = 2 ** int(np.clip(np.log2(source.num_samples / _STEPS), 5, 10))
    processes = torchrun().world_size
    batch_size = max(1, batch_size // processes) * processes
    return {
        "arch": "resnet18" if is_large else "resnet8_w16",
        "epochs": 16,
        "resolution": 80 if is_large else max(16, 8 * round(side / 16)),
        "batch_size": batch_size,
        "lr": round(0.5 * (batch_size / 1024) ** 0.5, 3),
        "min_scale": 0.5,
        "flip": False,
    }
