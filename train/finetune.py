r"""Finetune a pretrained classifier on a target: linear probe or all weights, with a new head.

    python -m train.finetune --checkpoint runs/pets_lm_40/checkpoints/last.pt \
        --train pets_train.beton --val pets_val.beton --test pets_test.beton \
        --run runs/pets_lm_40_probe --mode linear_probe

The epoch is chosen on the validation split; the test split is read once, for the chosen epoch.
"""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from dp4tl_ffcv import (
    BetonIndex,
    PrunedLoader,
    RunFolder,
    best_device,
    evaluation_loader,
    load_checkpoint,
    one_line_errors,
    replace_head,
    save_checkpoint,
    settings_of,
    sha256_of_file,
    track,
    training_loader,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A finetuning run."""

    checkpoint: Path
    """Written by train.pretrain."""
    train: Path
    """Target beton to train on."""
    val: Path
    """Target beton to choose the epoch on."""
    test: Path
    """Target beton to report on."""
    run: Path
    """Run folder."""
    mode: Literal["linear_probe", "full_finetuning"] = "linear_probe"
    """Train the new head alone on frozen features, or all weights."""
    arch: str | None = None
    """Architecture to insist on; None takes the checkpoint's."""
    resolution: int = 224
    """Side of the crops in pixels."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    epochs: int = 50
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 1e-2
    """Of Adam at the start, lowered to zero along a cosine; 1e-4 suits full finetuning."""
    weight_decay: float = 0.0
    """Decoupled (AdamW)."""
    min_scale: float = 0.08
    """Smallest area of a random crop, in full finetuning."""
    flip: bool = True
    """Mirror half of the images, in full finetuning."""
    seed: int = 0
    """Of the new head and the order of the samples."""
    num_workers: int = -1
    """Loading threads; -1 takes every core."""
    overwrite: bool = False
    """Replace a finished run of other settings in the same folder."""

    def __post_init__(self) -> None:
        """Refuse settings that no run can have."""
        for name in ("epochs", "batch_size", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}. Raise it.")


def finetune(config: Config) -> dict[str, Any]:
    """Train as `config` says and return the content of `result.json`."""
    model = load_checkpoint(config.checkpoint, arch=config.arch)
    run = RunFolder(config.run, _fingerprint(config), overwrite=config.overwrite)
    if finished := run.finished():
        print(f"{config.run}: finished before, reused")
        return finished
    run.start()

    # -- set up ----------------------------------------------------------------------------------
    torch.manual_seed(config.seed)
    device = best_device()
    num_classes = BetonIndex.open(config.train).num_classes()
    model = replace_head(model, num_classes).to(memory_format=torch.channels_last).to(device)
    train_one = train_probe if config.mode == "linear_probe" else train_all
    started = time.perf_counter()
    best_epoch, val_accuracy = train_one(model, config, run, device)
    seconds = time.perf_counter() - started

    # -- test, once ------------------------------------------------------------------------------
    hits = correct(model, evaluate_on(config.test, config, device))
    labels = torch.from_numpy(BetonIndex.open(config.test).labels())
    per_class = {str(int(c)): float(hits[labels == c].float().mean()) for c in labels.unique()}
    save_checkpoint(run.checkpoints / "best.pt", model)
    accuracy = float(hits.float().mean())
    result = {
        "checkpoint": str(run.checkpoints / "best.pt"),
        "mode": config.mode,
        "best_epoch": best_epoch,
        "val_accuracy": val_accuracy,
        "test_accuracy": accuracy,
        "test_accuracy_per_class": per_class,
        "test_samples": len(hits),
        "finetune_seconds": seconds,
    }
    print(f"{config.run}: {config.mode}, epoch {best_epoch} chosen, test accuracy {accuracy:.3f}")
    return run.finish(result)


def train_probe(
    model: Any, config: Config, run: RunFolder, device: torch.device
) -> tuple[int, float]:
    """Train the head on features that are computed once; keep the best epoch's weights."""
    features, labels = frozen_features(model, evaluate_on(config.train, config, device))
    val_features, val_labels = frozen_features(model, evaluate_on(config.val, config, device))
    head = model.head
    optimizer, schedule = make_optimizer(head, config, -(-len(labels) // config.batch_size))
    best = Best(head)
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(labels)).to(device).split(config.batch_size):
            loss = nn.functional.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            accuracy = (head(val_features).argmax(1) == val_labels).float().mean().item()
        run.log({"event": "epoch", "epoch": epoch, "val_accuracy": accuracy})
        best.offer(epoch, accuracy)
    return best.restore()


def train_all(
    model: Any, config: Config, run: RunFolder, device: torch.device
) -> tuple[int, float]:
    """Train every weight on augmented images; keep the best epoch's weights."""
    loader = training_loader(
        config.train,
        batch_size=config.batch_size,
        resolution=config.resolution,
        seed=config.seed,
        min_scale=config.min_scale,
        flip=config.flip,
        num_workers=config.num_workers,
        device=device,
    )
    val_loader = evaluate_on(config.val, config, device)
    optimizer, schedule = make_optimizer(model, config, len(loader))
    best = Best(model)
    epochs = range(config.epochs)
    for epoch in track(
        epochs, total=config.epochs, description=f"finetune {config.run.name}", unit="epochs"
    ):
        model.train()
        for images, labels in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = float(correct(model, val_loader).float().mean())
        run.log({"event": "epoch", "epoch": epoch, "val_accuracy": accuracy})
        best.offer(epoch, accuracy)
    return best.restore()


def make_optimizer(
    part: nn.Module, config: Config, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return Adam and its cosine schedule over the whole run."""
    optimizer = torch.optim.AdamW(part.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    num_steps = config.epochs * steps_per_epoch
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)


class Best:
    """The weights of the epoch with the highest validation accuracy; the first of equals."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.epoch, self.accuracy = -1, -1.0
        self.state: dict[str, Any] = {}

    def offer(self, epoch: int, accuracy: float) -> None:
        """Keep the present weights if they are better."""
        if accuracy > self.accuracy:
            self.epoch, self.accuracy = epoch, accuracy
            self.state = copy.deepcopy(self.part.state_dict())

    def restore(self) -> tuple[int, float]:
        """Put the best weights back and return their epoch and accuracy."""
        self.part.load_state_dict(self.state)
        return self.epoch, self.accuracy


def evaluate_on(beton: Path, config: Config, device: torch.device) -> PrunedLoader:
    """Return a loader of centre crops, every sample once."""
    return evaluation_loader(
        beton,
        batch_size=config.batch_size,
        resolution=config.resolution,
        crop_ratio=config.crop_ratio,
        num_workers=config.num_workers,
        device=device,
    )


@torch.no_grad()
def frozen_features(model: Any, loader: PrunedLoader) -> tuple[Tensor, Tensor]:
    """Return the input of the head `(n, D)` and the labels `(n,)`."""
    model.eval()
    parts = [(model.features(images)[1].float(), labels.clone()) for images, labels in loader]
    features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, labels


@torch.inference_mode()
def correct(model: nn.Module, loader: PrunedLoader) -> Tensor:
    """Return which samples are classified correctly, bool `(n,)` on the CPU."""
    model.eval()
    return torch.cat([(model(images).argmax(1) == labels).cpu() for images, labels in loader])


def _fingerprint(config: Config) -> dict[str, Any]:
    """Everything that the result depends on: the settings, and what the files hold."""
    settings = settings_of(config)
    del settings["overwrite"]
    splits = {name: getattr(config, name) for name in ("train", "val", "test")}
    return {
        **settings,
        **{f"{name}_fingerprint": BetonIndex.open(p).fingerprint for name, p in splits.items()},
        "checkpoint_sha256": sha256_of_file(config.checkpoint),
    }


if __name__ == "__main__":
    settings = tyro.cli(Config, description=__doc__)
    with one_line_errors("train.finetune"):
        finetune(settings)
