"""Configurations of `train.pretrain_moco`: MoCo v2's by name, and what each field is.

A name is a function that returns a complete configuration; copy one to make your own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..components.augmentations import Augmentation
from .checks import check_at_least, check_choices, check_shares


@dataclass(frozen=True, kw_only=True)
class Config(Augmentation):
    """A self-supervised pretraining run; the defaults are MoCo v2's (Chen et al. 2003.04297)."""

    train: Path
    """Beton to train on; its labels are not read."""
    run: Path
    """Run folder."""
    selection: Path | None = None
    """Selection made for `train`, of classes or pseudo-classes. None trains on all."""

    arch: str = "resnet50"
    """A classifier of torchvision, or resnet8_w16 or resnet8_w32 for 32 to 64 pixels."""
    projection_size: int = 128
    """Numbers that the contrastive loss compares, behind a layer as wide as the features."""
    norm_batch: int | None = 32
    """Images over which batch normalisation takes its statistics in training; None: all that a
    process has. MoCo's GPUs had 32 each: as keys are shuffled, statistics do not tell which image
    belongs to which."""

    resolution: int = 224
    """Side of the crops in pixels."""
    min_scale: float = 0.2
    """Smallest area of a random crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the crops; switch off where left and right matter."""

    queue: int = 65536
    """Keys of earlier images that stand against each image's own; a multiple of a step's images."""
    temperature: float = 0.2
    """What similarities are divided by."""
    key_momentum: float = 0.999
    """Share of its own weights that the key network keeps in each step."""

    epochs: int = 200
    """Passes over the retained samples."""
    iterations: int | None = None
    """Optimiser steps instead of epochs, to compare selections at equal compute."""
    batch_size: int = 256
    """Images per step, or per step and process."""
    batch_per: Literal["step", "process"] = "step"
    """A step's batch is `batch_size`, shared by the processes, or each process has as many."""

    lr: float = 0.03
    """Learning rate of SGD at the start, lowered to zero along a cosine; MoCo's for 256 images."""
    lr_per: Literal["step", "process"] = "step"
    """The rate is `lr`, or `lr` times the number of processes."""
    warmup: float = 0.0
    """Share of all steps over which the rate rises linearly before; 0 for no rise."""
    momentum: float = 0.9
    """Of SGD, without Nesterov's correction."""
    weight_decay: float = 1e-4
    """On every parameter."""

    amp: Literal["bf16", "off"] = "bf16"
    """Precision of the networks on a GPU; the loss, and all on a CPU, takes float32."""

    seed: int = 0
    """Of the initial weights, the order of the samples and the augmentations."""
    num_workers: int = -1
    """Loading threads of each process; -1 shares the cores of a machine among its processes."""
    cache: str = "auto"
    """How the loader reads: auto, os, extents or ram."""
    order: Literal["random", "quasi_random"] = "random"
    """Order of the samples; quasi_random is for files that are larger than the memory."""

    log_every: int = 50
    """Steps between two lines of the log."""
    save_every: int = 1
    """Epochs between two checkpoints to resume from."""
    resume: bool = True
    """Continue a run that was stopped; else start it over."""
    overwrite: bool = False
    """Replace a finished run of other settings in the same folder."""

    def __post_init__(self) -> None:
        """Refuse settings that no run can have."""
        super().__post_init__()
        check_choices(self)
        check_at_least(self, 1, ("epochs", "iterations", "batch_size", "resolution", "queue"))
        check_at_least(self, 1, ("projection_size", "norm_batch", "log_every", "save_every"))
        check_at_least(self, 0, ("lr", "weight_decay", "seed"))
        check_at_least(self, 1e-3, ("temperature",))
        check_shares(self, ("min_scale", "key_momentum", "momentum", "warmup"))
        if self.resolution <= self.blur_radius:
            raise ValueError(
                f"`resolution` must be above the blur's radius, {self.blur_radius} pixels; got "
                f"{self.resolution}. Raise it or lower `blur_sigma`."
            )


def moco_rn50_200(*, train: Path, run: Path) -> Config:
    """MoCo v2's ResNet-50 over 200 epochs (Chen et al. 2003.04297, table 2)."""
    return Config(train=train, run=run)


def moco_rn50_800(*, train: Path, run: Path) -> Config:
    """MoCo v2's ResNet-50 over 800 epochs (the same table)."""
    return Config(train=train, run=run, epochs=800)


def moco_rn18_200(*, train: Path, run: Path) -> Config:
    """A ResNet-18 under the same settings: a surrogate for FM."""
    return Config(train=train, run=run, arch="resnet18")


def moco_rn18_800(*, train: Path, run: Path) -> Config:
    """The same over 800 epochs."""
    return Config(train=train, run=run, arch="resnet18", epochs=800)


def moco_rn101_200(*, train: Path, run: Path) -> Config:
    """A ResNet-101 under the same settings: the largest that the paper on LM and FM shows."""
    return Config(train=train, run=run, arch="resnet101")


CONFIGS: dict[str, Callable[..., Config]] = {
    make.__name__: make
    for make in (moco_rn18_200, moco_rn18_800, moco_rn50_200, moco_rn50_800, moco_rn101_200)
}
