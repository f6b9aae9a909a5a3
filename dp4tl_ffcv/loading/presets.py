"""The two image pipelines that recipes and tools share: augmented training and plain evaluation."""

import os
from functools import partial
from typing import Any

import torch
from ffcv.fields.basics import IntDecoder
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
from numpy.typing import ArrayLike

from ..beton import BetonIndex
from ..selection import Selection
from .decoding.decoders import (
    CenterCropRGBImageDecoder,
    CropDecoder,
    RandomResizedCropRGBImageDecoder,
)
from .loader import PrunedLoader
from .orders import random_order, sequential_order

DEFAULT_CROP_RATIO = 224 / 256  # side of the centre crop / shorter side, as for ImageNet


def training_loader(  # noqa: PLR0913  # each is an option of its own, and named at the call
    beton: str | os.PathLike[str],
    *,
    batch_size: int,
    resolution: int,
    seed: int,
    selection: Selection | None = None,
    min_scale: float = 0.08,
    flip: bool = True,
    num_workers: int = -1,
    device: str | torch.device = "cpu",
    relabel: bool = True,
    cache: str | None = None,
    order: str = "random",
    distributed: bool = False,
) -> PrunedLoader:
    """Load random resized crops, by default in random order and with a selection's labels remapped.

    The last batch is dropped unless it is the only one.

    Args:
        beton: with fields `image` and `label`.
        batch_size: images per batch.
        resolution: side of the square crops in pixels.
        seed: of the order and of the crops.
        selection: what to load; None loads all with the labels as they are.
        min_scale: smallest area of a crop, as a share of the image.
        flip: mirror half of the images.
        num_workers: threads; -1 takes every core.
        device: where the batches go.
        relabel: give a selection's classes the labels 0 to K - 1; False leaves labels as they are.
        cache: where the samples' bytes are, as for `PrunedLoader`.
        order: of the samples, as for `PrunedLoader`.
        distributed: load this process's share, in batches of `batch_size` in each process. In the
            orders "random" and "sequential", the batches of all processes together are those of
            one process with as many times the batch.

    Yields images uint8 `(B, 3, resolution, resolution)` and labels int64 `(B,)`.
    """
    side = (resolution, resolution)
    crops = RandomResizedCropRGBImageDecoder(
        side, scale=(min_scale, 1.0), flip=0.5 if flip else 0.0
    )
    index = BetonIndex.open(beton)
    count = index.num_samples if selection is None else len(selection)
    drop_last = count // _world_size(distributed) >= batch_size
    return PrunedLoader(
        beton,
        batch_size,
        num_workers=num_workers,
        order=_cut(order) if distributed and drop_last else order,
        seed=seed,
        pipelines=_pipelines(index, crops, device),
        drop_last=drop_last,
        selection=selection,
        relabel=relabel and selection is not None,
        cache=cache,
        distributed=distributed,
    )


def evaluation_loader(
    beton: str | os.PathLike[str],
    *,
    batch_size: int,
    resolution: int,
    selection: Selection | None = None,
    indices: ArrayLike | None = None,
    crop_ratio: float = DEFAULT_CROP_RATIO,
    num_workers: int = -1,
    device: str | torch.device = "cpu",
    relabel: bool = True,
    cache: str | None = None,
) -> PrunedLoader:
    """Load centre crops, each sample once, in order, by default with a selection's labels remapped.

    Args:
        beton: with fields `image` and `label`.
        batch_size: images per batch.
        resolution: side of the square crops in pixels.
        selection: what to load; None loads all with the labels as they are.
        indices: sample ids to load, instead of a selection.
        crop_ratio: side of the crop / shorter side of the image.
        num_workers: threads; -1 takes every core.
        device: where the batches go.
        relabel: give a selection's classes the labels 0 to K - 1; False leaves labels as they are.
        cache: where the samples' bytes are, as for `PrunedLoader`.

    Yields images uint8 `(B, 3, resolution, resolution)` and labels int64 `(B,)`.
    """
    crops = CenterCropRGBImageDecoder((resolution, resolution), ratio=crop_ratio)
    return PrunedLoader(
        beton,
        batch_size,
        num_workers=num_workers,
        order="sequential",
        indices=indices,
        pipelines=_pipelines(BetonIndex.open(beton), crops, device),
        drop_last=False,
        selection=selection,
        relabel=relabel and selection is not None,
        cache=cache,
    )


def _world_size(distributed: bool) -> int:
    return torch.distributed.get_world_size() if distributed else 1


def _cut(order: str) -> Any:
    """Return an order whose shares are cut to equal length rather than filled up.

    With the last batch dropped, an epoch has then as many steps in any number of processes. The
    shares of quasi-random order are blocks of the file, and differ in any case.
    """
    functions: dict[str, Any] = {"random": random_order, "sequential": sequential_order}
    return partial(functions[order], pad=False) if order in functions else order


def _pipelines(index: BetonIndex, crops: CropDecoder, device: str | torch.device) -> dict[str, Any]:
    device = torch.device(device)
    move = [] if device.type == "cpu" else [ToDevice(device)]
    for name in ("image", "label"):
        index.field(name)  # names the fields there are when it is missing
    return {
        **{field.name: None for field in index.fields},
        "image": [crops, ToTensor(), *move, ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1), *move],
    }
