r"""Pretrain a classifier on a source beton, or on what a selection retains of it.

    python -m train.pretrain --config rn18_16 --train source_train.beton --val source_val.beton \
        --selection pets_lm_40.npz --run runs/pets_lm_40
    torchrun --nproc-per-node 8 -m -- train.pretrain --config rn50_16 ...

The run folder gets `config.json`, `log.jsonl`, `checkpoints/last.pt` and `result.json`. A finished
run of the same configuration is not repeated, and one that was killed goes on where it was.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dp4tl_ffcv import (
    BetonIndex,
    PrunedLoader,
    Selection,
    build_model,
    save_checkpoint,
    training_loader,
)
from dp4tl_ffcv.utils import Classifier, RunFolder, one_line_errors, settings_of

from .components.attacks import adversarial_loss, make_attack
from .components.optimizers import AveragedWeights, add_blurpool, make_optimizer
from .components.processes import Processes, processes
from .components.progress import Journal, Meter
from .components.resuming import Progress, Snapshot
from .components.schedules import learning_rate_factor, resolution_at
from .components.validation import Validation
from .configs.command_line import parse
from .configs.pretraining import CONFIGS, Config

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


def pretrain(config: Config) -> dict[str, Any]:
    """Train as `config` says and return the content of `result.json`."""
    with processes() as group:
        data = open_data(config)
        run = RunFolder(
            config.run, _fingerprint(config, data, group.world), overwrite=config.overwrite
        )
        if finished := group.in_main(run.finished):
            if group.main:
                print(f"{config.run}: finished before, reused")
            return finished
        group.in_main(partial(run.start, resume=config.resume))

        # -- set up ------------------------------------------------------------------------------
        parts = set_up(config, data, group)
        snapshot = Snapshot(run.checkpoints / "resume.pt", parts.stateful)
        resumed = group.in_main(snapshot.path.exists)
        progress = snapshot.load() if resumed else Progress()
        journal = Journal(run, active=group.main, first_step=progress.step)
        if resumed:
            journal.write("continue", progress.step)
        start_epoch(parts, progress.epoch)
        progress.warm_up_seconds += warm_up(parts)

        # -- train -------------------------------------------------------------------------------
        while progress.step < parts.num_steps:
            start_epoch(parts, progress.epoch)
            train_epoch(parts, progress, journal)
            last = progress.step == parts.num_steps
            # Before the state is kept: a run that is killed meanwhile then comes by here again.
            if not last and config.val_every and progress.epoch % config.val_every == 0:
                with parts.weights_to_keep():
                    journal.write("validation", progress.step, **parts.validate())
            if last or progress.epoch % config.save_every == 0:
                group.in_main(partial(snapshot.save, progress))

        # -- finish ------------------------------------------------------------------------------
        checkpoint = run.checkpoints / "last.pt"
        with parts.weights_to_keep():
            accuracies = parts.validate()
            parts.model.trained_on = data.index.fingerprint
            group.in_main(partial(save_checkpoint, checkpoint, parts.model))
        journal.close()
        result = {
            "settings": settings_of(config),  # with the paths, which may change later
            "checkpoint": str(checkpoint),
            "retained_classes": data.num_classes,
            "retained_samples": data.num_samples,
            "steps": progress.step,
            "images": progress.images,
            "pretrain_seconds": progress.seconds,
            "warm_up_seconds": progress.warm_up_seconds,
            **progress.rates(),
            "loss": progress.loss,
            "world": group.world,
            **accuracies,
        }
        if group.main:
            print(
                f"{config.run}: {data.num_classes} classes, {progress.step} steps, "
                f"{progress.seconds:.1f} s, {result['images_per_second']:.0f} images/s, "
                f"{result['stall_share']:.1%} of it waiting for the loader, "
                f"loss {progress.loss:.3f}"
            )
        written = group.in_main(partial(run.finish, result))
        if group.main:
            snapshot.remove()
        return written


# -- data ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Data:
    """What is trained and validated on."""

    index: BetonIndex
    """Of the training beton."""
    selection: Selection | None
    """What is retained of it; None for all."""
    val: BetonIndex | None
    """Of the validation beton."""

    @property
    def num_classes(self) -> int:
        """Retained classes K, or the source's C without a selection."""
        return len(self.selection.classes) if self.selection else self.index.num_classes

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return len(self.selection) if self.selection else self.index.num_samples


def open_data(config: Config) -> Data:
    """Open the betons and the selection, and check that they belong together.

    Raises:
        StaleArtifactError: the selection was made for another beton.
        ValueError: the validation beton is of another source.
    """
    index = BetonIndex.open(config.train)
    selection = Selection.load(config.selection) if config.selection else None
    if selection:
        selection.check(index)
    val = BetonIndex.open(config.val) if config.val else None
    if val is not None and (
        val.num_classes > index.num_classes
        or (selection is not None and not np.isin(selection.classes, val.labels()).any())
    ):
        raise ValueError(
            f"`val` must hold classes of `train`, the retained ones among them; got "
            f"{str(val.path)!r}. Pass the validation split of the same source."
        )
    return Data(index, selection, val)


def _fingerprint(config: Config, data: Data, world: int) -> dict[str, Any]:
    """Everything that the result depends on: the settings, and what the files hold.

    Not where the files are, nor into how many processes the steps are divided.
    """
    settings = settings_of(config)
    for name in ("overwrite", "resume", "log_every", "save_every", "num_workers", "cache"):
        del settings[name]
    for name in ("run", "train", "val", "selection"):
        del settings[name]
    return {
        **settings,
        "processes": world if "process" in (config.batch_per, config.lr_per) else None,
        "train_fingerprint": data.index.fingerprint,
        "val_fingerprint": data.val.fingerprint if data.val else None,
        "retained": data.selection.digest() if data.selection else None,
    }


# -- parts ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parts:
    """What a training step works on."""

    config: Config
    group: Processes
    model: Classifier
    """The bare model, which is validated and saved."""
    network: nn.Module
    """The same weights as they are trained: compiled, and with gradients of all processes."""
    averaged: AveragedWeights | None
    loader: PrunedLoader
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    criterion: nn.Module
    num_steps: int
    validation: Validation | None

    @property
    def stateful(self) -> dict[str, Any]:
        """What changes in a run, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return {**parts, "averaged": self.averaged} if self.averaged else parts

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass; on a CPU it changes nothing."""
        amp, device = self.config.amp, self.group.device.type
        return torch.autocast(device, _HALF[amp], enabled=device == "cuda" and amp != "off")

    def validate(self) -> dict[str, Any]:
        """Return the accuracies of the weights that the model has now."""
        if self.validation is None:
            return {"val_accuracy": None}
        self.group.seed(self.config.seed, self.num_steps)  # an attack's random start
        return self.validation.accuracies(self.model, self.group, self.autocast())

    def weights_to_keep(self) -> Any:
        """Return a context in which the model has the weights that are validated and saved."""
        return self.averaged.applied() if self.averaged else nullcontext()


def set_up(config: Config, data: Data, group: Processes) -> Parts:
    """Make the model, the loader and the optimiser."""
    torch.backends.cudnn.benchmark = True  # an epoch's batches have one shape
    torch.manual_seed(config.seed)
    model = make_model(config, data, group)
    network: Any = model
    if config.compile != "off":
        # A side of the ramp is compiled for itself: kernels for any side would be slower.
        network = torch.compile(model, mode=config.compile, dynamic=False)
    loader = training_loader(
        config.train,
        batch_size=batch_of_process(config, group),
        resolution=config.resolution,
        seed=config.seed,
        selection=data.selection,
        min_scale=config.min_scale,
        flip=config.flip,
        num_workers=group.threads(config.num_workers),
        device=group.device,
        relabel=config.relabel,
        cache=config.cache,
        order=config.order,
        distributed=group.world > 1,
    )
    scaled = config.amp == "fp16" and group.device.type == "cuda"
    return Parts(
        config=config,
        group=group,
        model=model,
        network=group.wrap(network),
        averaged=AveragedWeights(model, config.ema) if config.ema else None,
        loader=loader,
        optimizer=optimizer_of(config, model),
        scaler=torch.amp.GradScaler(group.device.type, enabled=scaled),
        criterion=nn.CrossEntropyLoss(label_smoothing=config.label_smoothing),
        num_steps=config.iterations or config.epochs * len(loader),
        validation=make_validation(config, data, group),
    )


def make_model(config: Config, data: Data, group: Processes) -> Classifier:
    """Build the untrained model on this process's device."""
    num_classes = data.num_classes if config.relabel else data.index.num_classes
    model = build_model(config.arch, num_classes)
    if config.blurpool:
        add_blurpool(model)
    if config.sync_batchnorm and group.world > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(memory_format=layout).to(group.device)


def optimizer_of(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser that trains `model`."""
    return make_optimizer(
        model,
        name=config.optimizer,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        norm_weight_decay=config.norm_weight_decay,
    )


def make_validation(config: Config, data: Data, group: Processes) -> Validation | None:
    """Return how the model is validated, on the retained classes, or None without a split."""
    if data.val is None:
        return None
    ids, selection = np.arange(data.val.num_samples), data.selection
    attack = None
    if config.attack != "none":
        attack = make_attack("pgd", epsilon=config.attack_epsilon, steps=config.robust_steps)
    return Validation(
        index=data.val,
        ids=selection.transfer(data.val).indices if selection else ids,
        label_map=selection.label_map if selection and config.relabel else None,
        batch_size=config.val_batch_size or batch_of_process(config, group),
        resolution=config.val_resolution or config.end_resolution or config.resolution,
        crop_ratio=config.crop_ratio,
        num_workers=group.threads(config.num_workers),
        tta=config.tta,
        attack=attack,
    )


def batch_of_process(config: Config, group: Processes) -> int:
    """Return the images of a step in each process."""
    if config.batch_per == "process":
        return config.batch_size
    return group.per_process(config.batch_size)


# -- training ------------------------------------------------------------------------------------
def start_epoch(parts: Parts, epoch: int) -> None:
    """Set what an epoch's batches and draws follow from, whatever came before."""
    config = parts.config
    # Passes of a run of `epochs` that has come as far: with `iterations` there are more or fewer,
    # and the same share of the run is at each resolution.
    passes = epoch * config.epochs * len(parts.loader) // parts.num_steps
    side = resolution_at(
        passes,
        resolution=config.resolution,
        end_resolution=config.end_resolution,
        ramp=config.ramp,
    )
    parts.loader.resolution = side
    parts.loader.set_epoch(epoch)
    parts.group.seed(config.seed, epoch)


def train_epoch(parts: Parts, progress: Progress, journal: Journal) -> None:
    """Make the steps of the next epoch, or of what is left of the run."""
    config, group = parts.config, parts.group
    num_steps = min(len(parts.loader), parts.num_steps - progress.step)
    meter = Meter(
        group.device,
        description=f"pretrain {config.run.name}, step {progress.step}/{parts.num_steps}",
        steps_after=parts.num_steps - progress.step - num_steps,
        quiet=not group.main,
    )
    total_loss = torch.zeros((), device=group.device)
    started = time.perf_counter()
    parts.model.train()
    per_step = parts.loader.batch_size * group.world
    for images, labels in meter.batches(parts.loader, num_steps, per_step):
        loss = train_step(parts, images, labels, progress.step)
        total_loss += loss  # stays on the device: no wait for the GPU in the loop
        progress.step += 1
        progress.images += len(images) * group.world
        if progress.step % config.log_every == 0:
            journal.loss(progress.step, loss)
    progress.end_epoch(total_loss, num_steps, started, meter, group)
    group.average(_running_statistics(parts))
    journal.flush()
    progress.check_loss(config.lr)
    figures = {"loss": progress.loss, "seconds": progress.seconds, **progress.rates()}
    journal.write("epoch", progress.step, **figures)


def train_step(parts: Parts, images: Tensor, labels: Tensor, step: int) -> Tensor:
    """Step on one batch and return its loss; nothing here waits for the GPU."""
    config = parts.config
    for group in parts.optimizer.param_groups:
        group["lr"] = learning_rate(parts, step)
    loss = loss_of(parts, images, labels)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()
    if config.grad_clip is not None:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), config.grad_clip)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if parts.averaged:
        parts.averaged.update()
    return loss.detach()


def loss_of(parts: Parts, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch, on adversarial images if the configuration has an attack."""
    config = parts.config
    with parts.autocast():
        if config.attack == "none":
            loss: Tensor = parts.criterion(parts.network(images), labels)
            return loss
        return adversarial_loss(
            parts.network,
            images,
            labels,
            kind=config.attack,
            attack=make_attack(
                config.attack,
                epsilon=config.attack_epsilon,
                steps=config.attack_steps,
                step_size=config.attack_step_size,
            ),
            criterion=parts.criterion,
            beta=config.trades_beta,
        )


def learning_rate(parts: Parts, step: int) -> float:
    """Return the learning rate of a step."""
    config = parts.config
    highest = config.lr * (parts.group.world if config.lr_per == "process" else 1)
    return highest * learning_rate_factor(
        step,
        num_steps=parts.num_steps,
        steps_per_epoch=max(1, parts.num_steps // config.epochs),
        schedule=config.schedule,
        warmup=config.warmup,
        start_factor=config.start_factor,
        end_factor=config.end_factor,
        step_length=config.step_length,
        step_ratio=config.step_ratio,
    )


def warm_up(parts: Parts) -> float:
    """Take a batch forward and backward, leave all as it was, and return the seconds.

    What is compiled or set up at first use is then not counted as training.
    """
    started = time.perf_counter()
    epoch = parts.loader.next_epoch
    images, labels = next(iter(parts.loader))
    parts.loader.set_epoch(epoch)
    before = {name: buffer.clone() for name, buffer in parts.model.named_buffers()}
    parts.model.train()
    loss_of(parts, images, labels).backward()
    parts.optimizer.zero_grad(set_to_none=True)
    for name, buffer in parts.model.named_buffers():
        buffer.copy_(before[name])
    if parts.group.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _running_statistics(parts: Parts) -> list[Tensor]:
    """Return what batch normalisation keeps of this process's batches, and its averages."""
    held = [dict(parts.model.named_buffers())]
    if parts.averaged:
        held.append(parts.averaged.state_dict()["average"])
    names = [name for name in held[0] if name.endswith(("running_mean", "running_var"))]
    return [tensors[name] for tensors in held for name in names]


if __name__ == "__main__":
    with one_line_errors("train.pretrain"):
        pretrain(parse(Config, CONFIGS, description=__doc__))
