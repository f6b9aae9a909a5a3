r"""Pretrain a classifier on a source beton, or on what a selection retains of it.

    python -m train.pretrain --train source_train.beton --val source_val.beton \
        --selection pets_lm_40.npz --run runs/pets_lm_40

The run folder gets `config.json`, `log.jsonl`, `checkpoints/last.pt` and `result.json`. A finished
run of the same configuration is not repeated.
"""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from dp4tl_ffcv import (
    BetonIndex,
    PrunedLoader,
    RunFolder,
    Selection,
    best_device,
    build_model,
    evaluation_loader,
    one_line_errors,
    save_checkpoint,
    settings_of,
    track,
    training_loader,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run."""

    train: Path
    """Beton to train on."""
    run: Path
    """Run folder."""
    val: Path | None = None
    """Beton to validate on at the end; with a selection, on its classes alone."""
    selection: Path | None = None
    """Selection made for `train`; its classes get the labels 0 to K - 1. None trains on all."""
    arch: str = "resnet18"
    """A classifier of torchvision, or resnet8_w16 or resnet8_w32 for 32 to 64 pixels."""
    resolution: int = 160
    """Side of the training crops in pixels."""
    crop_ratio: float = 224 / 256
    """Side of the validation crop / shorter side of the image."""
    epochs: int = 16
    """Passes over the retained samples."""
    iterations: int | None = None
    """Optimiser steps instead of epochs, to compare selections at equal compute."""
    batch_size: int = 1024
    """Images per step."""
    lr: float = 0.5
    """Highest learning rate, reached after `warmup` and then lowered linearly to zero."""
    warmup: float = 0.125
    """Share of all steps over which the rate rises: 2 of 16 epochs."""
    momentum: float = 0.9
    """Of SGD, with Nesterov's correction."""
    weight_decay: float = 5e-5
    """On every parameter."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    min_scale: float = 0.08
    """Smallest area of a random crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the images; switch off where left and right matter."""
    seed: int = 0
    """Of the initial weights and the order of the samples."""
    num_workers: int = -1
    """Loading threads; -1 takes every core."""
    overwrite: bool = False
    """Replace a finished run of other settings in the same folder."""

    def __post_init__(self) -> None:
        """Refuse settings that no run can have."""
        for name in ("epochs", "iterations", "batch_size", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. Raise it.")


def pretrain(config: Config) -> dict[str, Any]:
    """Train as `config` says and return the content of `result.json`."""
    index = BetonIndex.open(config.train)
    selection = Selection.load(config.selection) if config.selection else None
    val = BetonIndex.open(config.val) if config.val else None
    run = RunFolder(
        config.run, _fingerprint(config, index, val, selection), overwrite=config.overwrite
    )
    if finished := run.finished():
        print(f"{config.run}: finished before, reused")
        return finished
    if selection:
        selection.check(index)
    validation = _validation_selection(val, index, selection)
    run.start()

    # -- set up ----------------------------------------------------------------------------------
    torch.manual_seed(config.seed)
    device = best_device()
    num_classes = len(selection.classes) if selection else index.num_classes()
    model = build_model(config.arch, num_classes).to(memory_format=torch.channels_last).to(device)
    loader = training_loader(
        config.train,
        batch_size=config.batch_size,
        resolution=config.resolution,
        seed=config.seed,
        selection=selection,
        min_scale=config.min_scale,
        flip=config.flip,
        num_workers=config.num_workers,
        device=device,
    )
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    num_steps = config.iterations or config.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: triangle(step, num_steps, config.warmup)
    )
    warm_up_seconds = warm_up(model, loader)

    # -- train -----------------------------------------------------------------------------------
    parts = Parts(
        model,
        loader,
        optimizer,
        schedule,
        nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
    )
    seconds, step, images = 0.0, 0, 0
    while step < num_steps:
        epoch_steps = min(len(loader), num_steps - step)
        name = f"pretrain {config.run.name}, step {step}/{num_steps}"
        started = time.perf_counter()
        epoch_images, loss = train_epoch(parts, epoch_steps, name)
        seconds += time.perf_counter() - started
        if not math.isfinite(loss):
            raise ValueError(f"`lr` must keep the loss finite; got {config.lr}. Lower it.")
        step, images = step + epoch_steps, images + epoch_images
        run.log({"event": "epoch", "step": step, "loss": loss, "seconds": seconds})

    # -- finish ----------------------------------------------------------------------------------
    checkpoint = run.checkpoints / "last.pt"
    model.trained_on = index.fingerprint
    save_checkpoint(checkpoint, model)
    result = {
        "checkpoint": str(checkpoint),
        "retained_classes": num_classes,
        "retained_samples": len(selection) if selection else index.num_samples,
        "steps": num_steps,
        "images": images,
        "pretrain_seconds": seconds,
        "warm_up_seconds": warm_up_seconds,
        "images_per_second": images / seconds,
        "val_accuracy": validate(model, config.val, config, validation) if config.val else None,
    }
    print(
        f"{config.run}: {num_classes} classes, {num_steps} steps, {seconds:.1f} s, "
        f"{images / seconds:.0f} images/s, loss {loss:.3f}"
    )
    return run.finish(result)


@dataclass(frozen=True)
class Parts:
    """What a training step works on."""

    model: nn.Module
    loader: PrunedLoader
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    criterion: nn.Module


def train_epoch(parts: Parts, num_steps: int, name: str) -> tuple[int, float]:
    """Make `num_steps` steps on the next epoch's batches; return images and mean loss."""
    device = next(parts.model.parameters()).device
    total_loss, count = torch.zeros((), device=device), 0
    parts.model.train()
    batch_size = parts.loader.batch_size
    batches = zip(range(num_steps), parts.loader, strict=False)
    for _, (images, labels) in track(
        batches, total=num_steps * batch_size, description=name, unit="images", scale=batch_size
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = parts.criterion(parts.model(images), labels)
        parts.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parts.optimizer.step()
        parts.schedule.step()
        total_loss += loss.detach()  # stays on the device: no wait for the GPU in the loop
        count += len(images)
    return count, total_loss.item() / num_steps  # waits for the GPU, so the caller's clock is right


def triangle(step: int, num_steps: int, warmup: float) -> float:
    """Return the share of the highest rate at `step`: up linearly, then down, never zero."""
    peak = max(1.0, warmup * num_steps)
    if step < peak:
        return (step + 1) / (peak + 1)
    return max(0.0, num_steps - step) / max(1.0, num_steps - peak)


def warm_up(model: nn.Module, loader: PrunedLoader) -> float:
    """Load a batch and take it through a copy of the model; return the seconds.

    What is compiled or set up at first use is then not counted as training.
    """
    started = time.perf_counter()
    epoch = loader.next_epoch
    images, _ = next(iter(loader))
    loader.next_epoch = epoch
    copy.deepcopy(model).train()(images).sum().backward()
    return time.perf_counter() - started


@torch.inference_mode()
def validate(model: nn.Module, beton: Path, config: Config, selection: Selection | None) -> float:
    """Return the top-1 accuracy on the samples of a selection of `beton`, or on all."""
    loader = evaluation_loader(
        beton,
        batch_size=config.batch_size,
        resolution=config.resolution,
        selection=selection,
        crop_ratio=config.crop_ratio,
        num_workers=config.num_workers,
        device=next(model.parameters()).device,
    )
    model.eval()
    hits = [(model(images).argmax(1) == labels).sum() for images, labels in loader]
    return float(torch.stack(hits).sum()) / len(loader.indices)


def _validation_selection(
    val: BetonIndex | None, index: BetonIndex, selection: Selection | None
) -> Selection | None:
    """Return the retained classes of the validation beton; refuse one of another source."""
    if val is None:
        return None
    if val.num_classes() > index.num_classes() or (
        selection is not None and not np.isin(selection.classes, val.labels()).any()
    ):
        raise ValueError(
            f"`val` must hold classes of `train`, the retained ones among them; got "
            f"{str(val.path)!r}. Pass the validation split of the same source."
        )
    return selection.transfer(val) if selection else None


def _fingerprint(
    config: Config, index: BetonIndex, val: BetonIndex | None, selection: Selection | None
) -> dict[str, Any]:
    """Everything that the result depends on: the settings, and what the files hold."""
    settings = settings_of(config)
    del settings["overwrite"]
    return {
        **settings,
        "train_fingerprint": index.fingerprint,
        "val_fingerprint": val.fingerprint if val else None,
        "retained": selection.digest() if selection else None,
    }


if __name__ == "__main__":
    settings = tyro.cli(Config, description=__doc__)
    with one_line_errors("train.pretrain"):
        pretrain(settings)
