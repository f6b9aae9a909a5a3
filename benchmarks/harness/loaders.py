"""Stock ffcv's `Loader` and `PrunedLoader` with the same samples and pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

import dp4tl_ffcv

SEED = 0


def open_loader(
    beton: Path,
    *,
    stock: bool,
    order: str,
    from_disk: bool,
    resolution: int = 0,
    flip: bool = False,
    image: Sequence[Any] = (),
    move: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Return a loader of random resized crops and labels.

    Args:
        beton: file to read.
        stock: return ffcv's `Loader`.
        order: `sequential`, `random` or `quasi_random`.
        from_disk: read ahead from the file (stock: `os_cache=False`) instead of using the default
            cache.
        resolution: side of the crops, in pixels.
        flip: mirror half of the crops.
        image: another pipeline of the images.
        move: operations that move tensors to a device.
        **options: further arguments of both loaders.
    """
    if not image:
        size = (resolution, resolution)
        if stock:
            crop = [RandomResizedCropRGBImageDecoder(size), *([RandomHorizontalFlip()] * flip)]
        else:  # resolved here, so that the stock side's process holds stock ffcv alone
            crop = [dp4tl_ffcv.RandomResizedCropRGBImageDecoder(size, flip=0.5 * flip)]
        image = [*crop, ToTensor(), *move, ToTorchImage()]
    options |= {
        "fname": str(beton),
        "num_workers": -1,
        "seed": SEED,
        "drop_last": False,
        "pipelines": {
            "image": [*image],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *move],
            "identifier": None,
        },
    }
    if stock:
        return Loader(**options, order=OrderOption[order.upper()], os_cache=not from_disk)
    cache = "extents" if from_disk else "auto"
    return dp4tl_ffcv.PrunedLoader(**options, order=order, cache=cache)
