"""Stock ffcv's `Loader` and `PrunedLoader` with the same samples and pipelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor

import dp4tl_ffcv

SEED = 0


def open_loader(
    beton: Path,
    image: Sequence[Any],
    *,
    stock: bool,
    order: str,
    from_disk: bool,
    move: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Return a loader of images and labels.

    Args:
        beton: file to read.
        image: pipeline of the images.
        stock: return ffcv's `Loader`.
        order: `sequential`, `random` or `quasi_random`.
        from_disk: read ahead from the file (stock: `os_cache=False`) instead of using the default
            cache.
        move: end of the labels' pipeline.
        **options: further arguments of both loaders.
    """
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
