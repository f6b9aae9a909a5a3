"""Configurations of `train.pretrain`: the fields, then DP4TL's and ffcv-imagenet's by name.

A name stands for a function that returns a complete configuration from the paths alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .checks import check_at_least, check_choices, check_pixel_values, check_shares


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
    val_batch_size: int | None = None
    """Images of a validation batch in each process; None takes as many as in training."""

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
    """Loading threads of each process; -1 shares the cores of a machine among its processes."""
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
        check_at_least(self, 1, ("epochs", "iterations", "batch_size", "val_batch_size"))
        check_at_least(self, 1, ("resolution", "end_resolution", "val_resolution"))
        check_at_least(self, 1, ("attack_steps", "robust_steps", "log_every", "save_every"))
        check_at_least(self, 1, ("step_length",))
        check_at_least(self, 0, ("val_every", "lr", "weight_decay", "step_ratio", "trades_beta"))
        check_at_least(self, 0, ("grad_clip", "attack_epsilon", "seed"))
        check_pixel_values(self, ("attack_step_size",))
        if self.attack != "none":
            check_pixel_values(self, ("attack_epsilon",))
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


# -- by name -------------------------------------------------------------------------------------
# The values are those of the files named below, except the seed, the number of threads and the
# order of the samples, which say nothing about a training, and the dropped last batch.


class Named(Protocol):
    """A function that returns a complete configuration."""

    __name__: str

    def __call__(self, *, train: Path, run: Path, val: Path | None = None) -> Config:
        """Return it for these files."""
        ...


# Epochs to the ramp from 160 to 192 pixels, which ffcv-imagenet chose and DP4TL took over.
RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


def _dp4tl(depth: int, epochs: int, batch_size: int) -> Named:
    """Name DP4TL's recipe for a ResNet (OPTML-Group/DP4TL, configs/imagenet_train_from_scratch).

    Its rate starts and ends at 1e-4. Its cycle also lowers the momentum to 0.8 at the peak, torch's
    default; here it is constant.
    """
    values = {
        **_resnet(depth, epochs, batch_size),
        "lr": 0.5,
        "start_factor": 1e-4 / 0.5,
        "end_factor": 1e-4 / 0.5,
        "weight_decay": 5e-5,
        "norm_weight_decay": True,
        "label_smoothing": 0.0,
        "blurpool": False,
        "tta": False,
    }
    whose = "DP4TL's" if depth != 50 or epochs == 16 else "DP4TL's of 16 epochs made longer:"
    return _named(f"rn{depth}_{epochs}", whose, values)


def _ffcv(depth: int, epochs: int, batch_size: int, lr: float, weight_decay: float) -> Named:
    """Name ffcv-imagenet's recipe for a ResNet (libffcv/ffcv-imagenet, rn18_configs, rn50_configs).

    It spares the weights whose name has `bn` from decay; here all norms and biases are spared.
    """
    values = {
        **_resnet(depth, epochs, batch_size),
        "lr": lr,
        "start_factor": 1e-4,
        "end_factor": 0.0,
        "weight_decay": weight_decay,
        "norm_weight_decay": False,
        "label_smoothing": 0.1,
        "blurpool": True,
        "tta": True,
    }
    return _named(f"ffcv_rn{depth}_{epochs}", "ffcv-imagenet's", values)


def _resnet(depth: int, epochs: int, batch_size: int) -> dict[str, Any]:
    """Return what both have."""
    return {
        "arch": f"resnet{depth}",
        "relabel": False,
        "resolution": 160,
        "end_resolution": 192,
        "ramp": RAMPS[epochs],
        "val_resolution": 256,
        "crop_ratio": 224 / 256,
        "min_scale": 0.08,
        "flip": True,
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": "cyclic",
        "warmup": 2 / epochs,
        "optimizer": "sgd",
        "momentum": 0.9,
        "nesterov": False,
        "amp": "fp16",
    }


def _named(name: str, whose: str, values: dict[str, Any]) -> Named:
    def config(*, train: Path, run: Path, val: Path | None = None) -> Config:
        return Config(train=train, run=run, val=val, **values)

    config.__name__ = config.__qualname__ = name
    config.__doc__ = (
        f"Return {whose} {values['arch']}, {values['epochs']} epochs of steps of "
        f"{values['batch_size']:,} images."
    )
    return config


# The first is the surrogate of the paper.
_RN18 = [_dp4tl(18, epochs, batch_size=1024) for epochs in RAMPS]
rn18_16, rn18_24, rn18_32, rn18_40, rn18_56, rn18_88 = _RN18

# Of these DP4TL has the first; the others follow its ResNet-18.
_RN50 = [_dp4tl(50, epochs, batch_size=512) for epochs in RAMPS]
rn50_16, rn50_24, rn50_32, rn50_40, rn50_56, rn50_88 = _RN50

rn101_16 = _dp4tl(101, 16, batch_size=256)
rn152_16 = _dp4tl(152, 16, batch_size=256)

_FFCV_RN18 = [_ffcv(18, epochs, 1024, lr=0.5, weight_decay=5e-5) for epochs in RAMPS]
ffcv_rn18_16, ffcv_rn18_24, ffcv_rn18_32, ffcv_rn18_40, ffcv_rn18_56, ffcv_rn18_88 = _FFCV_RN18

# Batches of 512 on each of eight GPUs, which the rate is for.
_FFCV_RN50 = [_ffcv(50, epochs, 8 * 512, lr=1.7, weight_decay=1e-4) for epochs in RAMPS]
ffcv_rn50_16, ffcv_rn50_24, ffcv_rn50_32, ffcv_rn50_40, ffcv_rn50_56, ffcv_rn50_88 = _FFCV_RN50

# Batches of 100 on each of four GPUs. DP4TL's scheduler lets the rate fall to zero at epoch 90 and
# rise again; here the cosine follows the warm-up and ends at zero.
vit_b_16_100 = _named(
    "vit_b_16_100",
    "DP4TL's",
    {
        "arch": "vit_b_16",
        "relabel": False,
        "resolution": 224,
        "val_resolution": 224,
        "crop_ratio": 224 / 256,
        "min_scale": 0.08,
        "flip": True,
        "tta": False,
        "epochs": 100,
        "batch_size": 4 * 100,
        "lr": 3e-3,
        "schedule": "cosine",
        "warmup": 10 / 100,
        "start_factor": 1e-3,
        "end_factor": 0.0,
        "optimizer": "adamw",
        "weight_decay": 0.3,
        "norm_weight_decay": True,
        "label_smoothing": 0.11,
        "blurpool": False,
        "amp": "fp16",
    },
)

CONFIGS = {
    named.__name__: named
    for named in (*_RN18, *_RN50, rn101_16, rn152_16, vit_b_16_100, *_FFCV_RN18, *_FFCV_RN50)
}
"""Every named configuration."""
