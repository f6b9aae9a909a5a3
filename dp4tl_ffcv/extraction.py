"""Run a model over the images of a beton and keep its features and predictions in a folder."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .beton import BetonIndex
from .distributed import barrier, on_rank_zero, process_group, rank, world_size
from .loading import evaluation_loader
from .progress import track
from .scoring.features.blocks import FeatureBlocks, Plan
from .scoring.features.features import Features
from .scoring.features.reductions import BLOCK_ROWS
from .scoring.surrogate.checkpoints import ModelLike, load_model
from .scoring.surrogate.models import Classifier
from .validate import check_choice, check_int


def extract_features(  # noqa: PLR0913  # options are named at the call
    model: ModelLike,
    beton: str | os.PathLike[str] | BetonIndex,
    out: str | os.PathLike[str],
    *,
    indices: ArrayLike | None = None,
    arch: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    headless: bool = False,
    resolution: int = 224,
    crop_ratio: float = 224 / 256,
    stretch_contrast: bool = False,
    logits: bool = False,
    dtype: Literal["float16", "float32"] = "float32",
    amp: bool = True,
    restart: bool = False,
    batch_size: int = 256,
    num_workers: int | None = None,
    timeout: float | None = 10.0,
    device: str | torch.device | None = None,
) -> Features:
    """Run a model over the images of a beton, and keep its features and predictions in a folder.

    The model runs in evaluation mode on centre crops. After a killed run, the same call continues
    and writes the same bytes as an uninterrupted run. A finished folder is loaded. Processes that
    `torchrun` started share the work, and all return the same features; a program that calls this
    function more than once must be inside `utils.process_group`.

    Args:
        model: a classifier or encoder; the path of a checkpoint; or the name of a pretrained model:
            an architecture of torchvision, `timm:NAME` or `efficientnet-lite0`. A file of this name
            comes first.
        beton: source or target, with fields `image` and `label`.
        out: folder to write.
        indices: sample ids `(n,)`; None takes all samples.
        arch: for a checkpoint: its architecture, see `load_checkpoint`.
        num_classes: for a checkpoint: its number of classes.
        mean: for a checkpoint: mean per channel.
        std: for a checkpoint: standard deviation per channel.
        headless: for a checkpoint: leave the classifier off and keep only features.
        resolution: side of the centre crop in pixels, after resizing.
        crop_ratio: side of the centre crop / shorter side of the image.
        stretch_contrast: scale the pixels of each image, all channels alike, so that the darkest is
            0 and the brightest is 255: for a target with less contrast than the source.
        logits: keep the logits `(n, C)` in addition to predictions and soft votes.
        dtype: type of the features on disk.
        amp: on a GPU, compute in mixed precision.
        restart: delete the folder of another run instead of raising StaleArtifactError.
        batch_size: images per forward pass. Rounded down to a power of two (300 runs as 256) of at
            most 4096, so that a continued run forms the same batches, and writes the same bytes.
        num_workers: loading threads per process. None: all cores, shared by the processes.
        timeout: seconds without a read that ends, as for `PrunedLoader`.
        device: where the model is moved to and run; None takes this process's GPU, else the CPU.

    Raises:
        BlockingIOError: another run is writing `out`.
        CheckpointError: the model cannot be loaded, see `load_checkpoint`.
        StaleArtifactError: `out` comes from another model, other samples or other settings.
        ValueError: an argument is wrong, or a feature is not finite (float16 cannot hold values
            above 65504).
    """
    check_choice("dtype", dtype, ("float16", "float32"))
    index = BetonIndex.of(beton)
    chosen = np.arange(index.num_samples) if indices is None else indices
    ids = index.check_ids("indices", chosen)
    if not ids.size:
        raise ValueError("`indices` is empty; pass at least one sample id.")
    classifier, weights = load_model(
        model, arch=arch, num_classes=num_classes, mean=mean, std=std, headless=headless
    )
    batch_size = _dividing_a_block(batch_size)
    with ExitStack() as held:
        own_device = held.enter_context(process_group())
        device = torch.device(own_device if device is None else device)
        classifier.to(device).eval()
        amp = amp and device.type == "cuda"
        held.enter_context(torch.inference_mode())
        held.enter_context(torch.autocast(device.type, enabled=amp))

        def load(ids: NDArray[np.int64]) -> Iterable[tuple[Tensor, Tensor]]:
            return evaluation_loader(
                index,
                batch_size=batch_size,
                resolution=resolution,
                crop_ratio=crop_ratio,
                num_workers=num_workers,
                timeout=timeout,
                device=device,
                indices=ids,
            )

        def shapes() -> tuple[int, int | None]:
            images, _ = next(iter(load(ids[:1])))
            outputs, pooled = classifier.features(images)
            return pooled.shape[1], None if outputs is None else outputs.shape[1]

        plan = Plan(
            folder=Path(out),
            indices=ids,
            logits=logits,
            dtype=dtype,
            facts={"weights_sha256": weights_digest(classifier), "device": device.type},
            provenance={
                "arch": classifier.arch,
                "trained_on": classifier.trained_on,
                **({"class_names": list(names)} if (names := classifier.class_names) else {}),
                "mean": list(classifier.channels[0]),
                "std": list(classifier.channels[1]),
                "amp": amp,
                **weights,
                "beton_fingerprint": index.fingerprint,
                "beton_classes": _num_classes(index),
                "resolution": resolution,
                "crop_ratio": crop_ratio,
                **({"stretch_contrast": True} if stretch_contrast else {}),
            },
        )
        missing = on_rank_zero(lambda: held.enter_context(plan.prepared(shapes, restart=restart)))
        if missing is not None:
            mine = missing[rank() :: world_size()]
            if mine:
                rows = np.concatenate([ids[plan.rows(block)] for block in mine])
                batches: Any = load(rows)
                if rank() == 0:
                    batches = track(
                        batches,
                        total=len(rows),
                        description="features",
                        unit="images",
                        scale=lambda batch: len(batch[1]),
                    )
                _write_blocks(classifier, batches, plan, mine, stretch=stretch_contrast)
            barrier()
            on_rank_zero(plan.finish)
    return Features.load(out)


def _write_blocks(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    plan: Plan,
    missing: Sequence[int],
    *,
    stretch: bool,
) -> None:
    """Compute and store the blocks `missing`. Each block starts with a new batch."""
    writer, remaining = FeatureBlocks(plan), iter(missing)
    block, parts = next(remaining), []
    for images, labels in batches:
        outputs, pooled = model.features(_stretched(images) if stretch else images)
        parts.append(
            (
                pooled.float().cpu().numpy(),
                labels.reshape(-1).cpu().numpy().astype(np.int64),
                None if outputs is None else outputs.float().cpu().numpy(),
            )
        )
        if sum(len(part[1]) for part in parts) == len(plan.indices[plan.rows(block)]):
            features, numbers, logits = zip(*parts, strict=True)
            writer.write(
                block,
                np.concatenate(features),
                np.concatenate(numbers),
                None if logits[0] is None else np.concatenate(logits),
            )
            block, parts = next(remaining, -1), []


def _stretched(images: Tensor) -> Tensor:
    """Scale each image `(B, 3, H, W)` to values from 0 to 255; an image of one value becomes 0."""
    values = images.float()
    low, high = (bound(values, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    stretched: Tensor = (values - low) * (255.0 / (high - low).clamp_min(1.0))
    return stretched


def _dividing_a_block(batch_size: int) -> int:
    """Return the largest size up to `batch_size` that divides a block.

    A sample's features depend, by rounding, on the other samples of its batch. With such a size,
    batches are the same whichever blocks are missing.
    """
    size = min(check_int("batch_size", batch_size, at_least=1), BLOCK_ROWS)
    while BLOCK_ROWS % size:
        size -= 1
    return size


def weights_digest(model: torch.nn.Module) -> str:
    """Return a SHA-256 of the parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _num_classes(index: BetonIndex) -> int | None:
    field = index.field("label")
    if field.kind == "int" and (index.metadata[field.column] < 0).any():
        return None  # samples without a class still have features
    return index.num_classes
