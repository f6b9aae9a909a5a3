"""Estimate the time and disk of a study's stages from short measurements."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dp4tl_ffcv import BetonIndex, build_model
from dp4tl_ffcv.utils import best_device

from ...configs.finetune import Config as FinetuneConfig
from ...configs.pretrain import Config as PretrainConfig
from ...configs.pretrain_moco import Config as MocoConfig
from ...configs.study import AUTO
from ..precision import autocast
from .stages import Stage

_STEPS = 3  # measured after one step to warm up
_MOST_PIXELS = 1 << 20  # of a measured step on a CPU, where large batches only take memory
_CLASSES = 100  # of the measured models


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of stages."""

    seconds: float = 0.0
    """On one core or GPU."""
    num_bytes: float = 0.0
    """Size of the files that remain."""
    at_most: bool = False
    """Whether the cost is a bound, since the number of samples is not known yet."""

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.seconds + other.seconds,
            self.num_bytes + other.num_bytes,
            self.at_most or other.at_most,
        )

    def __mul__(self, factor: float) -> "Estimate":
        return Estimate(self.seconds * factor, self.num_bytes * factor, self.at_most)


class UnknownError(ValueError):
    """A stage cannot be estimated before its betons are written, or without its network."""


def is_estimated(stage: Stage) -> bool:
    """Return whether stages of this kind are estimated: those that run a network."""
    return stage.kind in _KINDS


def estimate(stage: Stage) -> Estimate:
    """Return the expected cost of a stage that `is_estimated`.

    A few steps on random images give the time per image of each architecture, resolution and batch
    size. Loading and augmentation are not measured: a loader that keeps up costs nothing.

    Raises:
        UnknownError: a beton is not written yet, or the surrogate is given as weights.
    """
    return _KINDS[stage.kind](stage)


# -- kinds of stages -----------------------------------------------------------------------------
def _pretrain(stage: Stage) -> Estimate:
    settings = _settings(stage, PretrainConfig)
    network, (images, at_most) = _network(settings), _training_images(stage)
    epochs, every = settings["epochs"], settings["val_every"]
    validations = 1 + ((epochs - 1) // every if every else 0)
    attack = 0 if settings["attack"] == "none" else settings["attack_steps"]
    seconds = epochs * images * (1 + attack) * network.training
    seconds += validations * _num_images(stage, "val") * network.inference
    return Estimate(seconds, network.num_bytes, at_most or settings["infobatch"] > 0)


def _pretrain_moco(stage: Stage) -> Estimate:
    settings = _settings(stage, MocoConfig)
    network, (images, _) = _network(settings), _training_images(stage)
    # A step trains the network on one view of each image, and encodes the other view.
    per_image = network.training + network.inference
    return Estimate(settings["epochs"] * images * per_image, network.num_bytes)


def _finetune(stage: Stage) -> Estimate:
    arch = _settings(stage.needs["pretrained"], PretrainConfig)["arch"]
    return _finetuning(stage, arch)


def _finetuning(stage: Stage, arch: str) -> Estimate:
    settings = {**_settings(stage, FinetuneConfig), "arch": arch}
    network, epochs = _network(settings), settings["epochs"]
    train, val, test = (_num_images(stage, split) for split in ("train", "val", "test"))
    if settings["mode"] == "linear_probe":  # on features that are computed once
        seconds = (train + val + test) * network.inference + epochs * train * network.head
    else:
        seconds = epochs * (train * network.training + val * network.inference)
        seconds += test * network.inference
    return Estimate(seconds, network.num_bytes)


def _features(stage: Stage) -> Estimate:
    surrogate = stage.needs["surrogate"]
    config = MocoConfig if surrogate.kind == "pretrain_moco" else PretrainConfig
    settings = {**_settings(surrogate, config), **stage.facts["settings"]}
    network, images = _network(settings), _num_images(stage, "beton")
    outputs = network.features
    if settings.get("logits", True):
        outputs += _counts(surrogate, "train")[1]
    item = 2 if settings.get("dtype") == "float16" else 4
    return Estimate(images * network.inference, images * outputs * item)


def _halves(stage: Stage) -> Estimate:
    settings = _settings(stage, PretrainConfig)
    network, images = _network(settings), _num_images(stage, "train") / 2
    run = Estimate(settings["epochs"] * images * network.training, network.num_bytes)
    runs: int = stage.facts["runs"]
    return run * runs


def _influence(stage: Stage) -> Estimate:
    halves = stage.needs["halves"]
    runs: int = halves.facts["runs"]
    return _finetuning(stage, _settings(halves, PretrainConfig)["arch"]) * runs


_KINDS: dict[str, Callable[[Stage], Estimate]] = {
    each.__name__[1:]: each
    for each in (_pretrain, _pretrain_moco, _finetune, _features, _halves, _influence)
}


# -- what they need ------------------------------------------------------------------------------
def _settings(stage: Stage, config: Any) -> dict[str, Any]:
    """Return the settings of a recipe's run, with its defaults."""
    if "settings" not in stage.facts:
        raise UnknownError(f"the network of {stage.name} is unknown")
    defaults = {name: getattr(config, name, None) for name in config.__dataclass_fields__}
    return {**defaults, **stage.facts["settings"]}


def _num_images(stage: Stage, role: str) -> int:
    return _counts(stage, role)[0]


def _counts(stage: Stage, role: str) -> tuple[int, int]:
    """Return the number of samples and of classes of a beton."""
    path = stage.paths[role]
    if not path.exists():
        raise UnknownError(f"{path} is not written yet")
    return _counts_of(path)


@cache
def _counts_of(path: Path) -> tuple[int, int]:
    index = BetonIndex.open(path)
    return len(index), index.num_classes


def _training_images(stage: Stage) -> tuple[float, bool]:
    """Return the images of an epoch, and whether that is a bound."""
    images = _num_images(stage, "train")
    if "selection" not in stage.needs or "full" in stage.needs:
        return images, False
    selection = stage.needs["selection"]
    if (result := selection.result()) is not None:
        return result["samples"], False
    keep = selection.facts["keep"]
    return (images, True) if keep == AUTO else (keep * images, False)


@dataclass(frozen=True)
class _Network:
    """Measured costs of a network, per image on one core or GPU."""

    training: float
    """Seconds of a training step."""
    inference: float
    """Seconds of a forward pass."""
    head: float
    """Seconds of a training step of the head alone, on features."""
    features: int
    """Inputs of the head."""
    num_bytes: int
    """Size of the weights."""


def _network(settings: Mapping[str, Any]) -> _Network:
    return _measured(settings["arch"], settings["resolution"], settings["batch_size"])


@cache
def _measured(arch: str, resolution: int, batch_size: int) -> _Network:
    device, threads = best_device(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = build_model(arch, _CLASSES).to(device).to(memory_format=torch.channels_last)
        most = batch_size if device.type == "cuda" else max(1, _MOST_PIXELS // resolution**2)
        count = min(batch_size, most)
        images = torch.rand(count, 3, resolution, resolution, device=device) * 255
        head = nn.Linear(model.head.in_features, _CLASSES).to(device)
        features = torch.rand(batch_size, head.in_features, device=device)
        weights = model.state_dict().values()
        return _Network(
            training=_seconds(model.train(), images) / count,
            inference=_seconds(model.eval(), images) / count,
            head=_seconds(head, features) / batch_size,
            features=head.in_features,
            num_bytes=sum(each.numel() * each.element_size() for each in weights),
        )
    finally:
        torch.set_num_threads(threads)


def _seconds(model: nn.Module, inputs: torch.Tensor) -> float:
    """Return the seconds of a training step, or of a forward pass if the model is in `eval`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
    # Other work on the machine does not change processor times, which a GPU has none of.
    clock = time.perf_counter if inputs.device.type == "cuda" else time.process_time
    for step in range(_STEPS + 1):
        if step == 1:
            _wait(inputs.device)
            started = clock()
        with torch.set_grad_enabled(model.training), autocast("bf16", inputs.device):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        if model.training:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    _wait(inputs.device)
    return (clock() - started) / _STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
