"""Stock ffcv's `Loader` and `PrunedLoader` with the same samples and pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

import dp4tl_ffcv

SEED = 0
CENTER_RATIO = 224 / 256  # side of the crop / shorter side of the image


def open_loader(
    beton: Path,
    *,
    stock: bool,
    order: str,
    from_disk: bool,
    resolution: int = 0,
    center: bool = False,
    flip: bool = False,
    image: Sequence[Any] = (),
    move: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Return a loader of crops and labels.

    Args:
        beton: file to read.
        stock: return ffcv's `Loader`.
        order: `sequential`, `random` or `quasi_random`.
        from_disk: read ahead from the file (stock: `os_cache=False`) instead of using the default
            cache.
        resolution: side of the crops, in pixels.
        center: crop the centre, as for evaluation, instead of random resized crops.
        flip: mirror half of the random crops.
        image: another pipeline of the images.
        move: operations that move tensors to a device.
        **options: further arguments of both loaders.
    """
    if not image:
        size = (resolution, resolution)
        if center:
            crops = CenterCropRGBImageDecoder if stock else dp4tl_ffcv.CenterCropRGBImageDecoder
            crop = [crops(size, CENTER_RATIO)]
        elif stock:
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
