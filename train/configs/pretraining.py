"""Configurations of `train.pretrain`: DP4TL's and ffcv-imagenet's by name, and what each field is.

A name is a function that returns a complete configuration; copy one to make your own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .checks import check_at_least, check_choices, check_shares

__all__ = ["Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run."""

    train: Path
    """Beton to train on."""
    run: Path
    """Run folder."""
    val: Path | None = None
    """Beton to validate on; with a selection, on its classes alone."""
    selection: Path | None = None
    """Selection made for `train`. None trains on all."""
    relabel: bool = True
    """The head has the K retained classes, labelled 0 to K - 1; else the source's C and labels."""

    arch: str = "resnet18"
    """A classifier of torchvision, or resnet8_w16 or resnet8_w32 for 32 to 64 pixels."""
    blurpool: bool = False
    """Blur before strided convolutions of 16 or more channels, as ffcv-imagenet does."""

    resolution: int = 160
    """Side of the training crops in pixels, at the start."""
    end_resolution: int | None = None
    """The side behind the ramp."""
    ramp: tuple[int, int] | None = None
    """Epochs between which the side grows, in multiples of 32. None keeps `resolution`."""
    val_resolution: int | None = None
    """Side of the validation crops; None takes that of the last training crops."""
    crop_ratio: float = 224 / 256
    """Side of the validation crop / shorter side of the image."""
    min_scale: float = 0.08
    """Smallest area of a random crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the images; switch off where left and right matter."""
    tta: bool = False
    """Validate on the mean of an image's outputs and its mirror image's."""

    epochs: int = 16
    """Passes over the retained samples."""
    iterations: int | None = None
    """Optimiser steps instead of epochs, to compare selections at equal compute."""
    batch_size: int = 1024
    """Images per step, or per step and process."""
    batch_per: Literal["step", "process"] = "step"
    """A step's batch is `batch_size`, shared by the processes, or each process has as many."""

    lr: float = 0.5
    """Highest learning rate, reached after `warmup`."""
    lr_per: Literal["step", "process"] = "step"
    """The rate is `lr`, or `lr` times the number of processes."""
    schedule: Literal["cyclic", "step", "cosine", "constant"] = "cyclic"
    """How the rate falls: linearly, by a factor every few epochs, along a cosine, or not at all."""
    warmup: float = 0.125
    """Share of all steps over which the rate rises linearly: 2 of 16 epochs; 0 for no rise."""
    start_factor: float = 0.0
    """Share of `lr` at the first step; 0 begins one step up the rise."""
    end_factor: float = 0.0
    """Share of `lr` behind the last step, of the cyclic and cosine schedules."""
    step_length: int = 30
    """Epochs between the falls of the step schedule."""
    step_ratio: float = 0.1
    """What each of them multiplies the rate by."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = True
    """Nesterov's correction of the momentum."""
    weight_decay: float = 5e-5
    """Decoupled in AdamW."""
    norm_weight_decay: bool = True
    """Decay norms and biases as well."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    grad_clip: float | None = None
    """Largest norm of the whole gradient; None does not clip."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is validated and saved; 0 for none."""

    attack: Literal["none", "pgd", "fgsm", "trades"] = "none"
    """Train on adversarial images, and report the accuracy on such."""
    attack_epsilon: float = 3.0
    """Largest change of a pixel, of 255."""
    attack_steps: int = 3
    """Steps of PGD and TRADES in training."""
    attack_step_size: float | None = None
    """Of 255; None takes 2 `attack_epsilon` / `attack_steps`, for FGSM 1.25 `attack_epsilon`."""
    trades_beta: float = 6.0
    """Weight of the robust term in TRADES."""
    robust_steps: int = 20
    """Steps of PGD at evaluation, if there is an attack."""

    amp: Literal["bf16", "fp16", "off"] = "bf16"
    """Precision of the forward pass on a GPU, fp16 with a loss scale; a CPU takes float32."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Mode of `torch.compile`; the last two use CUDA graphs."""
    channels_last: bool = True
    """Keep the channels of a pixel together in memory, which convolutions on a GPU prefer."""
    sync_batchnorm: bool = False
    """Batch statistics over all processes."""

    seed: int = 0
    """Of the initial weights and the order of the samples."""
    num_workers: int = -1
    """Loading threads of each process; -1 takes every core."""
    cache: str = "auto"
    """How the loader reads: auto, os, extents or ram."""
    order: str = "random"
    """Order of the samples: random, or quasi_random for files that are larger than the memory."""

    val_every: int = 0
    """Epochs between validations; 0 validates at the end alone."""
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
        check_choices(self)
        check_at_least(self, 1, ("epochs", "iterations", "batch_size", "step_length"))
        check_at_least(self, 1, ("resolution", "end_resolution", "val_resolution"))
        check_at_least(self, 1, ("attack_steps", "robust_steps", "log_every", "save_every"))
        check_at_least(self, 0, ("val_every", "lr", "weight_decay", "step_ratio", "trades_beta"))
        check_at_least(self, 0, ("grad_clip", "attack_epsilon", "attack_step_size"))
        check_shares(self, ("warmup", "start_factor", "end_factor", "momentum", "ema"))
        check_shares(self, ("crop_ratio", "min_scale", "label_smoothing"))
        if (self.ramp is None) != (self.end_resolution is None):
            raise ValueError(
                f"`ramp` and `end_resolution` must come together; got {self.ramp} and "
                f"{self.end_resolution}. Give both, or neither for one resolution."
            )
        if self.ramp is not None and not 0 <= self.ramp[0] <= self.ramp[1]:
            raise ValueError(
                f"`ramp` must be two epochs, the earlier first; got {self.ramp}. Swap them."
            )
