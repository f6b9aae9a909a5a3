r"""Pretrain a classifier on a source beton, or on the samples that a selection retains.

    dp4tl pretrain --config rn18_16 --train source_train.beton --val source_val.beton \
        --selection pets_lm_40.npz --run runs/pets_lm_40
    torchrun --nproc-per-node 8 --no-python -- dp4tl pretrain --config rn50_16 ...

The run folder gets `config.json`, `log.jsonl`, `checkpoints/last.pt` and `result.json`, and with
`--record-dynamics` also `dynamics.npz`. A finished run with the same settings is not repeated, and
a stopped run continues where it stopped.
"""

from dp4tl_ffcv.utils import one_line_errors

from .configs.command_line import parse
from .configs.pretrain import CONFIGS, Config

if __name__ == "__main__":  # before the imports below, which take seconds
    with one_line_errors(Config):
        arguments = parse(Config, CONFIGS, description=__doc__)

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp4tl_ffcv import PrunedLoader, build_model, training_loader
from dp4tl_ffcv.utils import Classifier, on_rank_zero

from .components.attacks import adversarial_loss, make_attack
from .components.data import Source, names_of, open_source
from .components.dynamics import DynamicsRecorder
from .components.infobatch import InfoBatch
from .components.optimizers import AveragedWeights, add_blurpool, make_optimizer, take_step
from .components.precision import autocast, loss_scaler
from .components.processes import Processes, processes
from .components.sample_loss import SampleLoss
from .components.schedules import learning_rate, resolution_at
from .components.session import Session
from .components.validation import Validation
from .components.warm_up import try_batch


def pretrain(config: Config) -> dict[str, Any]:
    """Pretrain a classifier and return the content of `result.json`."""
    with processes() as group:
        source = open_source(config.beton("train"), config.selection, config.val_beton)
        session = Session("pretrain", config, group, source.fingerprints())
        if finished := session.finished():
            return finished
        session.start()
        state = set_up(config, source, group, session.scratch)
        session.resume(**state.stateful())
        start_epoch(state, session)
        session.warm_up(lambda: try_batch(state.model, state.loader, partial(loss_of, state)))

        while position_of(state, session) < state.num_steps:
            total = start_epoch(state, session)
            state.model.train()
            for images, labels in session.batches(state.loader, total, state.tell_ids):
                loss = train_step(state, images, labels, position_of(state, session))
                session.count(loss, len(images))
            if state.recorder:
                state.recorder.end_epoch()
            if state.infobatch:
                state.infobatch.end_epoch()
            session.end_epoch()
            group.average_statistics(state.model.named_buffers())
            if state.averaged:
                group.average_statistics(state.averaged.average.named_buffers())
            session.write_epoch()
            last = position_of(state, session) >= state.num_steps
            # Validate before saving: a run that is killed in between validates again.
            if not last and config.val_every and session.epoch % config.val_every == 0:
                session.write("validation", **validate(state))
            session.save(last=last)

        accuracies = validate(state)
        if state.recorder:
            on_rank_zero(partial(save_dynamics, state.recorder, source, config))
        state.result.trained_on = source.index.fingerprint
        return session.finish(
            state.result,
            f"{source.num_classes} classes, {session.counters}",
            retained_classes=source.num_classes,
            retained_samples=source.num_samples,
            **session.counters.result("pretrain"),
            **accuracies,
        )


# -- set-up --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step uses."""

    config: Config
    group: Processes
    model: Classifier
    """The bare model."""
    network: nn.Module
    """The model wrapped for training: compiled and in DistributedDataParallel."""
    averaged: AveragedWeights | None
    loader: PrunedLoader
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[float], float]
    """Learning rate by position in the run, see `position_of`."""
    scaler: torch.amp.GradScaler
    criterion: nn.Module
    recorder: DynamicsRecorder | None
    """Records the predictions of each sample."""
    infobatch: InfoBatch | None
    """Chooses the samples of each epoch."""
    epoch_steps: int
    """Steps of an epoch with all samples."""
    num_steps: int
    """Steps of the whole run, if each epoch has all samples."""
    validation: Validation | None

    def stateful(self) -> dict[str, Any]:
        """Return everything that training changes, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        optional = {
            "averaged": self.averaged,
            "recorder": self.recorder,
            "infobatch": self.infobatch,
        }
        return parts | {name: part for name, part in optional.items() if part}

    @property
    def tell_ids(self) -> Callable[[NDArray[np.int64]], None] | None:
        """Function that takes the sample ids of each batch; None if nothing asks for them."""
        return getattr(self.criterion, "tell_ids", None)

    @property
    def result(self) -> Classifier:
        """The model to validate and save."""
        return self.averaged.average if self.averaged else self.model


def set_up(config: Config, source: Source, group: Processes, scratch: Path) -> TrainState:
    """Make the model, the loader and the optimiser. Files to resume from go to `scratch`."""
    torch.backends.cudnn.benchmark = True  # all batches of an epoch have one shape
    torch.manual_seed(config.seed)
    model = make_model(config, source, group)
    network: Any = model
    if config.compile != "off":
        # Static shapes compile once per resolution, into faster kernels.
        network = torch.compile(model, mode=config.compile, dynamic=False)
    loader = training_loader(
        source.index,
        batch_size=group.batch_size(config),
        resolution=config.resolution,
        seed=config.seed,
        selection=source.selection,
        min_scale=config.min_scale,
        flip=config.flip,
        num_workers=config.num_workers,
        timeout=config.timeout,
        device=group.device,
        relabel=source.selection is not None and not config.full_head,
        cache=config.cache,
        order=config.order,
        distributed=group.world_size > 1,
    )
    num_steps = config.iterations or config.epochs * len(loader)
    recorder = infobatch = None
    if config.record_dynamics:
        recorder = DynamicsRecorder(scratch / "dynamics", group, model.num_classes or 0)
    if config.infobatch:
        infobatch = InfoBatch(source.ids, config.infobatch, config.seed, group)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    if recorder or infobatch:
        criterion = SampleLoss(config.label_smoothing, recorder, infobatch)
    return TrainState(
        config=config,
        group=group,
        model=model,
        network=group.wrap(network),
        averaged=AveragedWeights(model, config.ema) if config.ema else None,
        loader=loader,
        optimizer=make_optimizer(model, config),
        learning_rate=learning_rate(config, num_steps, group.world_size),
        scaler=loss_scaler(config.amp, group.device),
        criterion=criterion,
        recorder=recorder,
        infobatch=infobatch,
        epoch_steps=len(loader),
        num_steps=num_steps,
        validation=make_validation(config, source, group),
    )


def make_model(config: Config, source: Source, group: Processes) -> Classifier:
    """Build the untrained model on the device of this process."""
    classes = np.arange(source.index.num_classes)
    if source.selection and not config.full_head:
        classes = source.selection.classes
    model = build_model(config.arch, len(classes))
    model.class_names = names_of(source.index, classes)
    if config.blurpool:
        add_blurpool(model)
    if config.sync_batchnorm and group.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(memory_format=layout).to(group.device)


def make_validation(config: Config, source: Source, group: Processes) -> Validation | None:
    """Return the validation on the retained classes, or None without a validation beton."""
    if source.val is None:
        return None
    selection, attack = source.selection, None
    if config.attack != "none":
        attack = make_attack("pgd", epsilon=config.attack_epsilon, steps=config.robust_steps)
    return Validation(
        index=source.val,
        ids=selection.transfer(source.val).indices if selection else np.arange(len(source.val)),
        label_map=selection.label_map if selection and not config.full_head else None,
        batch_size=config.val_batch_size or group.batch_size(config),
        resolution=config.val_resolution or config.end_resolution or config.resolution,
        crop_ratio=config.crop_ratio,
        num_workers=config.num_workers,
        timeout=config.timeout,
        amp=config.amp,
        tta=config.tta,
        attack=attack,
    )


# -- training ------------------------------------------------------------------------------------
def position_of(state: TrainState, session: Session, *, epoch_start: bool = False) -> float:
    """Return how many of `num_steps` are done: now, or when the current epoch began.

    The shorter epochs of InfoBatch count as much as whole ones, as in its authors' code, so that
    every schedule goes by epochs. With `iterations`, steps count.
    """
    first = session.counters.first_step
    steps = 0 if epoch_start else session.step - first
    if state.config.iterations:
        return first + steps
    if state.infobatch:
        return state.epoch_steps * (session.epoch + steps / len(state.loader))
    return state.epoch_steps * session.epoch + steps


def start_epoch(state: TrainState, session: Session) -> int:
    """Set the samples and the resolution of an epoch. Return the steps that the run has at most."""
    config, loader = state.config, state.loader
    start = position_of(state, session, epoch_start=True)
    # With `iterations` a run has more or fewer epochs than `epochs`: each resolution then takes
    # the same fraction of the run.
    epoch = int(start * config.epochs) // state.num_steps
    loader.resolution = resolution_at(epoch, config.resolution, config.end_resolution, config.ramp)
    if state.infobatch:
        prune = start + state.epoch_steps <= config.infobatch_until * state.num_steps
        least = loader.batch_size * state.group.world_size
        chosen = state.infobatch.start_epoch(session.epoch, at_least=least, prune=prune)
        loader.set_samples(chosen)
    if config.iterations:
        return config.iterations
    later = state.epoch_steps * (config.epochs - session.epoch - 1)
    return session.counters.first_step + len(loader) + later


def train_step(state: TrainState, images: Tensor, labels: Tensor, step: float) -> Tensor:
    """Train on one batch and return its loss, without waiting for the GPU."""
    loss = loss_of(state, images, labels)
    take_step(
        state.optimizer,
        loss,
        lr=state.learning_rate(step),
        scaler=state.scaler,
        grad_clip=state.config.grad_clip,
    )
    if state.averaged:
        state.averaged.update()
    return loss.detach()


def loss_of(state: TrainState, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch, on adversarial images if the settings name an attack."""
    config = state.config
    with autocast(config.amp, state.group.device):
        if config.attack == "none":
            loss: Tensor = state.criterion(state.network(images), labels)
            return loss
        attack = make_attack(
            config.attack,
            epsilon=config.attack_epsilon,
            steps=config.attack_steps,
            step_size=config.attack_step_size,
        )
        return adversarial_loss(
            state.network,
            images,
            labels,
            kind=config.attack,
            attack=attack,
            criterion=state.criterion,
            beta=config.trades_beta,
        )


def save_dynamics(recorder: DynamicsRecorder, source: Source, config: Config) -> None:
    """Write `dynamics.npz` to the run folder."""
    index = source.index
    about = {"source_fingerprint": index.fingerprint, "arch": config.arch, "seed": config.seed}
    recorder.result(source.ids, index.num_samples, about).save(config.run / "dynamics.npz")


def validate(state: TrainState) -> dict[str, Any]:
    """Return the accuracies of the current weights, or of their average."""
    if state.validation is None:
        return {"val_accuracy": None}
    state.group.seed(state.config.seed, state.num_steps)  # for the random start of an attack
    return state.validation.accuracies(state.result, state.group)


if __name__ == "__main__":
    with one_line_errors(arguments):
        pretrain(arguments)
