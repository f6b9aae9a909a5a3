"""Settings of `train.pretrain`, and the configurations of DP4TL and ffcv-imagenet by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .common import SupervisedConfig, check_fields


@dataclass(frozen=True, kw_only=True)
class Config(SupervisedConfig):
    """Settings of a pretraining run."""

    val: Path | None = None
    """Beton to validate on, by default val.beton in --data if there is one. With a selection, only
    the retained classes are validated."""
    selection: Path | None = None
    """Selection made for the training beton. None trains on all samples."""
    full_head: bool = False
    """Keep one output per source class. By default the head has the K retained classes."""

    arch: str = "resnet18"
    """A classifier of torchvision, or resnet8_w16 or resnet8_w32 for images of 32 to 64 pixels."""
    blurpool: bool = False
    """Blur before strided convolutions of 16 or more channels, as ffcv-imagenet does."""

    resolution: int = 160
    """Side of the training crops at the start, in pixels."""
    end_resolution: int | None = None
    """Side of the training crops at the end of the ramp, in pixels."""
    ramp: tuple[int, int] | None = None
    """First and last epoch of the ramp to --end-resolution. Sizes are multiples of 32 pixels."""
    tta: bool = False
    """Validate on the mean of the outputs for an image and for its mirror image."""

    epochs: int = 16
    """Passes over the retained samples."""
    iterations: int | None = None
    """Optimiser steps instead of epochs, to compare selections at equal compute."""
    batch_size: int = 1024
    """Images per step, over all processes or in each; see --batch-per."""
    val_batch_size: int | None = None
    """Images of a validation batch in each process. None takes the training batch."""
    lr: float = 0.5
    """Highest learning rate, reached after the warm-up; see --lr-per."""
    schedule: Literal["cyclic", "step", "cosine", "constant"] = "cyclic"
    """How the learning rate falls: linearly, by a factor every few epochs, as a cosine, or not."""
    warmup: float = 0.125
    """Fraction of all steps over which the learning rate rises; the default is 2 of 16 epochs."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    nesterov: bool = True
    """Use Nesterov momentum in SGD."""
    weight_decay: float = 5e-5
    """Weight decay, decoupled in AdamW."""
    grad_clip: float | None = None
    """Largest norm of the gradient of all weights. None does not clip."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is validated and saved; 0 for none."""

    attack: Literal["none", "pgd", "fgsm", "trades"] = "none"
    """Train on adversarial images, and report the robust accuracy."""
    attack_epsilon: float = 3.0
    """Largest change of a pixel value, out of 255."""
    attack_steps: int = 3
    """Steps of PGD and TRADES in training."""
    attack_step_size: float | None = None
    """Change per step, out of 255. None: 2 epsilon / steps, or 1.25 epsilon for FGSM."""
    trades_beta: float = 6.0
    """Weight of the robust term in TRADES."""
    robust_steps: int = 20
    """Steps of PGD in validation, with any attack."""

    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Mode of `torch.compile`. The last two use CUDA graphs."""
    channels_last: bool = True
    """Store the channels of a pixel together, which convolutions on a GPU prefer."""
    sync_batchnorm: bool = False
    """Compute batch statistics over all processes."""
    cache: str = "auto"
    """How the loader reads: auto, extents or ram."""
    order: str = "random"
    """Order of the samples, such as random, or quasi_random for files larger than memory."""
    val_every: int = 0
    """Epochs between validations. 0 validates only at the end."""
    infobatch: float = 0.0
    """InfoBatch: fraction to leave out, in each epoch, of the samples whose loss is below the mean.
    The losses of those that remain are scaled up. 0 trains on all samples."""
    infobatch_until: float = 0.875
    """Fraction of the run after which InfoBatch takes all samples. The first epoch takes all
    samples too, so a run of two epochs leaves nothing out at 0.875."""
    record_dynamics: bool = False
    """Record how well each sample is predicted in each epoch, in dynamics.npz of the run folder.
    The methods forgetting, aum, dyn-unc and tdds score samples by this file."""

    @property
    def val_beton(self) -> Path | None:
        """Beton to validate on."""
        if self.val is None and (self.data is None or not (self.data / "val.beton").exists()):
            return None
        return self.beton("val")

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_fields(self, "iterations val_batch_size end_resolution", at_least=1)
        check_fields(self, "attack_steps robust_steps", at_least=1)
        check_fields(self, "val_every trades_beta grad_clip attack_epsilon", at_least=0)
        check_fields(self, "attack_step_size", above=0, at_most=255)
        if self.attack != "none":
            check_fields(self, "attack_epsilon", above=0, at_most=255)
            for name in ("record_dynamics", "infobatch"):
                if getattr(self, name):
                    raise ValueError(
                        f"`{name}` needs predictions of clean images, and a run with `attack` "
                        "makes none. Leave one of the two out."
                    )
        check_fields(self, "ema infobatch infobatch_until", at_least=0, at_most=1)
        if self.infobatch == 1:
            raise ValueError(
                "`infobatch` must be below 1: 0.5 leaves out half of the easy samples."
            )
        if (self.ramp is None) != (self.end_resolution is None):
            raise ValueError(
                f"`ramp` and `end_resolution` must be given together; got {self.ramp} and "
                f"{self.end_resolution}."
            )
        if self.ramp is not None and not 0 <= self.ramp[0] <= self.ramp[1]:
            raise ValueError(f"`ramp` must be two epochs, the first one first; got {self.ramp}.")


# -- by name -------------------------------------------------------------------------------------
# The values of the published files. The defaults of `Config` equal the published values; only seed,
# number of threads and order are ours. The last, smaller batch of an epoch is dropped, as in the
# files.

# First and last epoch of the ramp from 160 to 192 pixels, by the number of epochs.
_RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


def _resnet(depth: int, epochs: int, batch_size: int) -> dict[str, Any]:
    return {
        "arch": f"resnet{depth}",
        "full_head": True,
        "end_resolution": 192,
        "ramp": _RAMPS[epochs],
        "val_resolution": 256,
        "epochs": epochs,
        "batch_size": batch_size,
        "warmup": 2 / epochs,
        "nesterov": False,
        "amp": "fp16",
    }


def _dp4tl(depth: int, epochs: int, batch_size: int) -> dict[str, Any]:
    """Return DP4TL's settings (OPTML-Group/DP4TL, configs/imagenet_train_from_scratch).

    Its learning rate starts and ends at 1e-4. Its cyclic schedule also lowers the momentum to 0.8
    at the peak, which is torch's default; here the momentum is constant.
    """
    return {
        **_resnet(depth, epochs, batch_size),
        "lr": 0.5,
        "start_factor": 1e-4 / 0.5,
        "end_factor": 1e-4 / 0.5,
    }


def _ffcv(depth: int, epochs: int, batch_size: int, **values: float) -> dict[str, Any]:
    """Return ffcv-imagenet's settings (libffcv/ffcv-imagenet, rn18_configs and rn50_configs).

    It does not decay weights whose name contains `bn`; here no norm and no bias decays.
    """
    return {
        **_resnet(depth, epochs, batch_size),
        **values,
        "start_factor": 1e-4,
        "norm_weight_decay": False,
        "label_smoothing": 0.1,
        "blurpool": True,
        "tta": True,
    }


# Batches of 100 on each of four GPUs. In DP4TL's file the learning rate falls to zero at epoch 90
# and rises again; here the cosine follows the warm-up and ends at zero.
_VIT = {
    "arch": "vit_b_16",
    "full_head": True,
    "resolution": 224,
    "val_resolution": 224,
    "epochs": 100,
    "batch_size": 4 * 100,
    "lr": 3e-3,
    "schedule": "cosine",
    "warmup": 10 / 100,
    "start_factor": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 0.3,
    "label_smoothing": 0.11,
    "amp": "fp16",
}

# rn18_16 is the surrogate of the paper. DP4TL has no file for rn50 beyond 16 epochs: the
# longer rn50 settings copy its ResNet-18's. ffcv_rn50 takes batches of 512 on each of eight GPUs.
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"rn18_{epochs}": _dp4tl(18, epochs, batch_size=1024) for epochs in _RAMPS},
    **{f"rn50_{epochs}": _dp4tl(50, epochs, batch_size=512) for epochs in _RAMPS},
    "rn101_16": _dp4tl(101, 16, batch_size=256),
    "rn152_16": _dp4tl(152, 16, batch_size=256),
    "vit_b_16_100": _VIT,
    **{f"ffcv_rn18_{n}": _ffcv(18, n, 1024, lr=0.5, weight_decay=5e-5) for n in _RAMPS},
    **{f"ffcv_rn50_{n}": _ffcv(50, n, 8 * 512, lr=1.7, weight_decay=1e-4) for n in _RAMPS},
}
"""Settings by name: `Config(train=..., run=..., **CONFIGS["rn18_16"])`."""
