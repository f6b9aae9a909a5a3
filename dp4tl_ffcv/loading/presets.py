"""Image loaders with the usual pipelines for training and evaluation."""

import os
from functools import partial
from typing import Any

import torch
from ffcv.fields.basics import IntDecoder
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
from numpy.typing import ArrayLike

from ..beton import BetonIndex
from ..selection import Selection
from .arguments import load_selection
from .decoding.decoders import (
    CenterCropRGBImageDecoder,
    CropDecoder,
    RandomResizedCropRGBImageDecoder,
)
from .loader import PrunedLoader
from .orders import ORDERS
from .reading.reading_threads import STALLED_AFTER


def training_loader(  # noqa: PLR0913  # the options of a training loader
    beton: str | os.PathLike[str] | BetonIndex,
    *,
    batch_size: int,
    resolution: int,
    seed: int,
    selection: Selection | str | os.PathLike[str] | None = None,
    min_scale: float = 0.08,
    flip: bool = True,
    num_workers: int | None = None,
    device: str | torch.device = "cpu",
    relabel: bool = False,
    cache: str | None = None,
    order: str = "random",
    timeout: float | None = STALLED_AFTER,
    distributed: bool = False,
) -> PrunedLoader:
    """Return a loader of random resized crops, by default in random order.

    The loader drops the last, incomplete batch unless it is the only one.

    Args:
        beton: a beton with fields `image` and `label`: a path, or an open index.
        batch_size: images per batch.
        resolution: side of the square crops, in pixels.
        seed: seed of the order and of the crops.
        selection: a selection of the samples to load, or its path. None loads all samples.
        min_scale: smallest area of a crop, as a fraction of the image.
        flip: mirror half of the images.
        num_workers: decoding threads. None uses all cores, shared among the processes of this
            machine.
        device: device of the batches.
        relabel: give the classes of the selection the labels 0 to K - 1.
        cache: where the samples' bytes are kept, as for `PrunedLoader`.
        order: order of the samples, as for `PrunedLoader`.
        timeout: seconds without a read that ends, as for `PrunedLoader`.
        distributed: load this rank's share, in batches of `batch_size` on each rank. In the orders
            "random" and "sequential", the ranks' batches together equal the batches of one process
            with `world_size` times the batch size.

    Yields images uint8 `(B, 3, resolution, resolution)` and labels int64 `(B,)`.
    """
    index = BetonIndex.of(beton)
    chosen = load_selection(selection, index)
    world_size = torch.distributed.get_world_size() if distributed else 1
    drop_last = (index.num_samples if chosen is None else len(chosen)) // world_size >= batch_size
    decoder = RandomResizedCropRGBImageDecoder(
        (resolution, resolution), scale=(min_scale, 1.0), flip=0.5 if flip else 0.0
    )
    if distributed and drop_last and order in ("random", "sequential"):
        # The steps of an epoch must not depend on the ranks. In quasi-random order they always do.
        order = partial(ORDERS[order], pad=False)  # type: ignore[call-arg, assignment]  # ours pad
    return PrunedLoader(
        index,
        batch_size,
        num_workers=num_workers,
        order=order,
        seed=seed,
        pipelines=_pipelines(index, decoder, device),
        drop_last=drop_last,
        selection=chosen,
        relabel=relabel,
        cache=cache,
        timeout=timeout,
        distributed=distributed,
    )


def evaluation_loader(  # noqa: PLR0913  # the options of an evaluation loader
    beton: str | os.PathLike[str] | BetonIndex,
    *,
    batch_size: int,
    resolution: int,
    selection: Selection | str | os.PathLike[str] | None = None,
    indices: ArrayLike | None = None,
    crop_ratio: float = 224 / 256,
    num_workers: int | None = None,
    device: str | torch.device = "cpu",
    relabel: bool = False,
    cache: str | None = None,
    timeout: float | None = STALLED_AFTER,
) -> PrunedLoader:
    """Return a loader of centre crops that loads each sample once, in order.

    `indices` are sample ids to load instead of a selection. `crop_ratio` is the side of the crop
    divided by the shorter side of the image. The other arguments are as for `training_loader`.

    Yields images uint8 `(B, 3, resolution, resolution)` and labels int64 `(B,)`.
    """
    index = BetonIndex.of(beton)
    decoder = CenterCropRGBImageDecoder((resolution, resolution), ratio=crop_ratio)
    return PrunedLoader(
        index,
        batch_size,
        num_workers=num_workers,
        order="sequential",
        indices=indices,
        pipelines=_pipelines(index, decoder, device),
        drop_last=False,
        selection=selection,
        relabel=relabel,
        cache=cache,
        timeout=timeout,
    )


def _pipelines(
    index: BetonIndex, decoder: CropDecoder, device: str | torch.device
) -> dict[str, Any]:
    device = torch.device(device)
    move = [] if device.type == "cpu" else [ToDevice(device)]
    for name in ("image", "label"):
        index.field(name)  # raises an error that lists the fields
    return {
        **{field.name: None for field in index.fields},
        "image": [decoder, ToTensor(), *move, ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1), *move],
    }
