r"""Finetune a pretrained classifier on a target, with a new head: linear probe or all weights.

    python -m train.finetune --config oxford_pets_linear_probe \
        --checkpoint runs/pets_lm_40/checkpoints/last.pt \
        --train pets_train.beton --val pets_val.beton --test pets_test.beton \
        --run runs/pets_lm_40_probe
    torchrun --nproc-per-node 8 -m -- train.finetune --config sun397_full_finetuning ...

The mode from_scratch trains all weights without a checkpoint, for comparison. The epoch is chosen
on the validation split; the test split is read once, for the chosen epoch. The run folder gets
`config.json`, `log.jsonl`, `checkpoints/best.pt` and `result.json`. A finished run of the same
configuration is not repeated, and one on all weights that was killed goes on where it was.
"""

import copy
import time
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dp4tl_ffcv import (
    BetonIndex,
    PrunedLoader,
    build_model,
    evaluation_loader,
    load_checkpoint,
    save_checkpoint,
    training_loader,
)
from dp4tl_ffcv.utils import (
    Classifier,
    RunFolder,
    one_line_errors,
    replace_head,
    settings_of,
    sha256_of_file,
)

from .components.optimizers import make_optimizer
from .components.processes import Processes, processes
from .components.progress import Journal, Meter
from .components.resuming import Progress, Snapshot
from .components.schedules import learning_rate_factor
from .components.validation import Validation
from .configs.command_line import parse
from .configs.finetuning import CONFIGS, Config

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


def finetune(config: Config) -> dict[str, Any]:
    """Train as `config` says and return the content of `result.json`."""
    with processes() as group:
        splits = open_splits(config)
        pretrained = load_pretrained(config, group)
        run = RunFolder(config.run, _fingerprint(config, splits, group), overwrite=config.overwrite)
        checkpoint = run.checkpoints / "best.pt"
        if finished := group.in_main(run.finished):
            if group.main:
                print(f"{config.run}: finished before, reused")
            return {**finished, "checkpoint": str(checkpoint)}  # the folder may have moved
        group.in_main(partial(run.start, resume=config.resume))

        # -- set up ------------------------------------------------------------------------------
        torch.manual_seed(config.seed)
        model = make_model(config, splits["train"], pretrained, group)

        # -- train -------------------------------------------------------------------------------
        if config.mode == "linear_probe":
            trained = train_probe(model, config, run, group.device)
        else:
            trained = train_all(model, config, splits, run, group)

        # -- test, once --------------------------------------------------------------------------
        accuracy, per_class = accuracies(model, splits["test"], config, group)
        group.in_main(partial(save_checkpoint, checkpoint, model))
        worst = min(per_class, key=lambda name: per_class[name])
        result = {
            "settings": settings_of(config),  # with the paths, which may change later
            "checkpoint": str(checkpoint),
            "mode": config.mode,
            **trained,
            "test_accuracy": accuracy,
            "test_accuracy_class_mean": sum(per_class.values()) / len(per_class),
            "test_accuracy_worst_class": per_class[worst],
            "worst_class": worst,
            "test_accuracy_per_class": per_class,
            "test_samples": splits["test"].num_samples,
            "world": group.world,
        }
        if group.main:
            print(
                f"{config.run}: {config.mode}, epoch {trained['best_epoch']} chosen, test accuracy "
                f"{accuracy:.3f}, mean of classes {result['test_accuracy_class_mean']:.3f}, worst "
                f"class {per_class[worst]:.3f}"
            )
        written = group.in_main(partial(run.finish, result))
        if group.main:
            (run.checkpoints / "resume.pt").unlink(missing_ok=True)
        return written


# -- data, model and evaluation ------------------------------------------------------------------
def open_splits(config: Config) -> dict[str, BetonIndex]:
    """Open `train`, `val` and `test`, and check that they are three splits of one target.

    Raises:
        ValueError: two of them hold the same, or one has classes that `train` has not.
    """
    splits = {name: BetonIndex.open(getattr(config, name)) for name in ("train", "val", "test")}
    num_classes = splits["train"].num_classes
    for (first, one), (second, other) in combinations(splits.items(), 2):
        if _same(one, other):
            raise ValueError(
                f"`{second}` must hold other samples than `{first}`; got {str(other.path)!r}, "
                "which holds the same. Split the target, or its training split."
            )
    for name in ("val", "test"):
        if splits[name].num_classes > num_classes:
            raise ValueError(
                f"`{name}` must have the {num_classes} classes of `train`; got "
                f"{str(splits[name].path)!r} with {splits[name].num_classes}. Pass a split of "
                "the same target."
            )
    return splits


def load_pretrained(config: Config, group: Processes) -> Classifier | None:
    """Read the checkpoint, or return None where the mode has none.

    Raises:
        CheckpointError: it cannot be read or has another architecture than is insisted on.
        ValueError: several processes for a linear probe.
    """
    if config.mode == "linear_probe" and group.world > 1:
        raise ValueError(
            f"`mode` must be one that trains all weights in {group.world} processes; got "
            "linear_probe, which trains one layer on features in memory. Start it without torchrun."
        )
    if config.mode == "from_scratch":
        return None
    return load_checkpoint(str(config.checkpoint), arch=config.arch)


def make_model(
    config: Config, index: BetonIndex, pretrained: Classifier | None, group: Processes
) -> Classifier:
    """Return the classifier of the classes of `index`, on this process's device, its head new."""
    if pretrained is None:
        model = build_model(str(config.arch), index.num_classes)
        model.trained_on = index.fingerprint
    else:
        model = replace_head(pretrained, index.num_classes)
    return model.to(memory_format=torch.channels_last).to(group.device)


def accuracies(
    model: Classifier, index: BetonIndex, config: Config, group: Processes
) -> tuple[float, dict[str, float]]:
    """Return the accuracy on a split over all processes, and that of each of its classes."""
    validation = Validation(
        index=index,
        ids=np.arange(index.num_samples),
        label_map=None,
        batch_size=config.batch_size,
        resolution=config.val_resolution or config.resolution,
        crop_ratio=config.crop_ratio,
        num_workers=group.threads(config.num_workers),
    )
    found = validation.accuracies(model, group, _autocast(config, group.device))
    return found["val_accuracy"], found["val_accuracy_per_class"]


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

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to be resumed."""
        return {"epoch": self.epoch, "accuracy": self.accuracy, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.epoch, self.accuracy, self.state = state["epoch"], state["accuracy"], state["state"]


# -- linear probe --------------------------------------------------------------------------------
def train_probe(
    model: Classifier, config: Config, run: RunFolder, device: torch.device
) -> dict[str, Any]:
    """Train the head on features that are computed once; leave it as in the best epoch."""
    loaders = [evaluate_on(beton, config, device) for beton in (config.train, config.val)]
    warm_up_seconds = warm_up_probe(model, loaders[0])
    started = time.perf_counter()
    features, labels = frozen_features(model, loaders[0])
    val_features, val_labels = frozen_features(model, loaders[1])
    head, journal = model.head, Journal(run)
    optimizer = _optimizer(head, config)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    steps_per_epoch = -(-len(labels) // config.batch_size)
    best, step = Best(head), 0
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(labels)).to(device).split(config.batch_size):
            _set_learning_rate(optimizer, config, config.lr, step, steps_per_epoch)
            loss = criterion(head(features[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % config.log_every == 0:
                journal.loss(step, loss)
        with torch.inference_mode():
            accuracy = (head(val_features).argmax(1) == val_labels).float().mean().item()
        journal.flush()
        journal.write("epoch", step, epoch=epoch, val_accuracy=accuracy)
        best.offer(epoch, accuracy)
    journal.close()
    best_epoch, accuracy = best.restore()
    return {
        "best_epoch": best_epoch,
        "val_accuracy": accuracy,
        "finetune_seconds": time.perf_counter() - started,
        "warm_up_seconds": warm_up_seconds,
    }


@torch.no_grad()
def warm_up_probe(model: Classifier, loader: PrunedLoader) -> float:
    """Compute the features of a batch and return the seconds, which then count as no training."""
    started = time.perf_counter()
    images, _ = next(iter(loader))
    model.eval()
    model.features(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def frozen_features(model: Classifier, loader: PrunedLoader) -> tuple[Tensor, Tensor]:
    """Return the input of the head `(n, D)` and the labels `(n,)`."""
    model.eval()
    parts = [(model.features(images)[1].float(), labels.clone()) for images, labels in loader]
    features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, labels


def evaluate_on(beton: Path, config: Config, device: torch.device) -> PrunedLoader:
    """Return a loader of centre crops, every sample once."""
    return evaluation_loader(
        beton,
        batch_size=config.batch_size,
        resolution=config.val_resolution or config.resolution,
        crop_ratio=config.crop_ratio,
        num_workers=config.num_workers,
        device=device,
    )


# -- all weights ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parts:
    """What a step on all weights works on."""

    config: Config
    group: Processes
    model: Classifier
    """The bare model, which is validated and saved."""
    network: nn.Module
    """The same weights with the gradients of all processes."""
    loader: PrunedLoader
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    criterion: nn.Module


def train_all(
    model: Classifier,
    config: Config,
    splits: dict[str, BetonIndex],
    run: RunFolder,
    group: Processes,
) -> dict[str, Any]:
    """Train every weight on augmented images; leave the model as in the best epoch."""
    parts = set_up(model, config, group)
    best = Best(model)
    snapshot = Snapshot(
        run.checkpoints / "resume.pt",
        {"model": model, "optimizer": parts.optimizer, "scaler": parts.scaler, "best": best},
    )
    resumed = group.in_main(snapshot.path.exists)
    progress = snapshot.load() if resumed else Progress()
    journal = Journal(run, active=group.main, first_step=progress.step)
    if resumed:
        journal.write("continue", progress.step)
    progress.warm_up_seconds += warm_up(parts)
    while progress.epoch < config.epochs:
        train_epoch(parts, progress, journal)
        group.average(_running_statistics(model))
        accuracy, _ = accuracies(model, splits["val"], config, group)
        best.offer(progress.epoch - 1, accuracy)
        row = {"epoch": progress.epoch - 1, "val_accuracy": accuracy, "loss": progress.loss}
        journal.write("epoch", progress.step, **row, seconds=progress.seconds, **progress.rates())
        if progress.epoch == config.epochs or progress.epoch % config.save_every == 0:
            group.in_main(partial(snapshot.save, progress))
    journal.close()
    best_epoch, accuracy = best.restore()
    return {
        "best_epoch": best_epoch,
        "val_accuracy": accuracy,
        "finetune_seconds": progress.seconds,
        "warm_up_seconds": progress.warm_up_seconds,
        **progress.rates(),
    }


def set_up(model: Classifier, config: Config, group: Processes) -> Parts:
    """Make the loader and the optimiser."""
    shared = config.batch_per == "step"
    loader = training_loader(
        config.train,
        batch_size=group.per_process(config.batch_size) if shared else config.batch_size,
        resolution=config.resolution,
        seed=config.seed,
        min_scale=config.min_scale,
        flip=config.flip,
        num_workers=group.threads(config.num_workers),
        device=group.device,
        distributed=group.world > 1,
    )
    scaled = config.amp == "fp16" and group.device.type == "cuda"
    return Parts(
        config=config,
        group=group,
        model=model,
        network=group.wrap(model),
        loader=loader,
        optimizer=_optimizer(model, config),
        scaler=torch.amp.GradScaler(group.device.type, enabled=scaled),
        criterion=nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
    )


def train_epoch(parts: Parts, progress: Progress, journal: Journal) -> None:
    """Make the steps of the next epoch."""
    config, group, loader = parts.config, parts.group, parts.loader
    # What an epoch draws follows from its number, so that a resumed run draws the same.
    loader.set_epoch(progress.epoch)
    group.seed(config.seed, progress.epoch)
    meter = Meter(
        group.device,
        description=f"finetune {config.run.name}, epoch {progress.epoch}/{config.epochs}",
        steps_after=(config.epochs - progress.epoch - 1) * len(loader),
        quiet=not group.main,
    )
    total_loss = torch.zeros((), device=group.device)
    started = time.perf_counter()
    parts.network.train()
    for images, labels in meter.batches(loader, len(loader), loader.batch_size * group.world):
        loss = train_step(parts, images, labels, progress.step)
        total_loss += loss  # stays on the device: no wait for the GPU in the loop
        progress.step += 1
        progress.images += len(images) * group.world
        if progress.step % config.log_every == 0:
            journal.loss(progress.step, loss)
    progress.end_epoch(total_loss, len(loader), started, meter, group)
    journal.flush()
    progress.check_loss(config.lr)


def train_step(parts: Parts, images: Tensor, labels: Tensor, step: int) -> Tensor:
    """Step on one batch and return its loss; nothing here waits for the GPU."""
    config = parts.config
    highest = config.lr * (parts.group.world if config.lr_per == "process" else 1)
    _set_learning_rate(parts.optimizer, config, highest, step, len(parts.loader))
    loss = loss_of(parts, images, labels)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    return loss.detach()


def loss_of(parts: Parts, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch."""
    with _autocast(parts.config, parts.group.device):
        loss: Tensor = parts.criterion(parts.network(images), labels)
    return loss


def warm_up(parts: Parts) -> float:
    """Take a batch forward and backward, leave all as it was, and return the seconds.

    What is compiled or set up at first use is then not counted as training.
    """
    started = time.perf_counter()
    images, labels = next(iter(parts.loader))
    before = {name: buffer.clone() for name, buffer in parts.model.named_buffers()}
    parts.model.train()
    loss_of(parts, images, labels).backward()
    parts.optimizer.zero_grad(set_to_none=True)
    for name, buffer in parts.model.named_buffers():
        buffer.copy_(before[name])
    if parts.group.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


# -- details -------------------------------------------------------------------------------------
def _optimizer(part: nn.Module, config: Config) -> torch.optim.Optimizer:
    return make_optimizer(
        part,
        name=config.optimizer,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _set_learning_rate(
    optimizer: torch.optim.Optimizer,
    config: Config,
    highest: float,
    step: int,
    steps_per_epoch: int,
) -> None:
    factor = learning_rate_factor(
        step,
        num_steps=config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        schedule=config.schedule,
        warmup=config.warmup,
        start_factor=config.start_factor,
        end_factor=config.end_factor,
        step_length=config.step_length,
        step_ratio=config.step_ratio,
    )
    for group in optimizer.param_groups:
        group["lr"] = highest * factor


def _same(one: BetonIndex, other: BetonIndex) -> bool:
    """Say whether two betons hold the same; pixels, which no fingerprint covers, are read last."""
    if one.fingerprint != other.fingerprint:
        return False
    return sha256_of_file(one.path) == sha256_of_file(other.path)


def _running_statistics(model: nn.Module) -> list[Tensor]:
    names = ("running_mean", "running_var")
    return [value for name, value in model.named_buffers() if name.endswith(names)]


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass; on a CPU, and for a probe, it changes nothing."""
    half = config.amp != "off" and config.mode != "linear_probe" and device.type == "cuda"
    return torch.autocast(device.type, _HALF[config.amp], enabled=half)


def _fingerprint(config: Config, splits: dict[str, BetonIndex], group: Processes) -> dict[str, Any]:
    """Everything that the result depends on: the settings, and what the files hold."""
    settings = settings_of(config)
    for name in ("overwrite", "resume", "log_every", "save_every", "num_workers"):
        del settings[name]
    for name in ("checkpoint", "run", *splits):  # wherever the files lie
        del settings[name]
    per_process = "process" in (config.batch_per, config.lr_per)
    scratch = config.mode == "from_scratch"
    return {
        **settings,
        **{f"{name}_fingerprint": index.fingerprint for name, index in splits.items()},
        "checkpoint_sha256": None if scratch else sha256_of_file(str(config.checkpoint)),
        "world": group.world if per_process else None,
    }


if __name__ == "__main__":
    with one_line_errors("train.finetune"):
        finetune(parse(Config, CONFIGS, description=__doc__))
