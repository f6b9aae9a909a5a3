"""Configurations of `train.finetune`: the fields, then DP4TL's for its ten targets by name.

A name stands for a function that returns a complete configuration from the paths alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .checks import check_at_least, check_choices, check_shares


@dataclass(frozen=True, kw_only=True)
class Config:
    """A finetuning run."""

    checkpoint: Path | None = None
    """Written by train.pretrain, or by another program; not read where the mode is from_scratch."""
    train: Path
    """Target beton to train on."""
    val: Path
    """Target beton to choose the epoch on."""
    test: Path
    """Target beton to report on."""
    run: Path
    """Run folder."""
    mode: Literal["linear_probe", "full_finetuning", "from_scratch"] = "linear_probe"
    """Train the new head alone on frozen features, or all weights, or all without pretraining."""
    arch: str | None = None
    """Architecture to insist on; None takes the checkpoint's."""

    resolution: int = 224
    """Side of the crops in pixels."""
    val_resolution: int | None = None
    """Side of the crops that are evaluated; None takes `resolution`."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    min_scale: float = 0.08
    """Smallest area of a random crop, where all weights are trained."""
    flip: bool = True
    """Mirror half of the images, where all weights are trained."""

    epochs: int = 50
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step, or per step and process."""
    batch_per: Literal["step", "process"] = "step"
    """A step's batch is `batch_size`, shared by the processes, or each process has as many."""

    lr: float = 1e-2
    """Highest learning rate; 1e-4 suits full finetuning with Adam."""
    lr_per: Literal["step", "process"] = "step"
    """The rate is `lr`, or `lr` times the number of processes."""
    schedule: Literal["cyclic", "step", "cosine", "constant"] = "cosine"
    """How the rate falls: linearly, by a factor every few epochs, along a cosine, or not at all."""
    warmup: float = 0.0
    """Share of all steps over which the rate rises linearly; 0 for no rise."""
    start_factor: float = 0.0
    """Share of `lr` at the first step of a rise; 0 begins one step up."""
    end_factor: float = 0.0
    """Share of `lr` behind the last step, of the cyclic and cosine schedules."""
    step_length: int = 30
    """Epochs between the falls of the step schedule."""
    step_ratio: float = 0.1
    """What each of them multiplies the rate by."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Adam with its decay decoupled or in the gradient (without decay the same), or SGD."""
    momentum: float = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Nesterov's correction of the momentum."""
    weight_decay: float = 0.0
    """Decoupled in AdamW."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""

    amp: Literal["bf16", "fp16", "off"] = "bf16"
    """Precision of the forward pass on a GPU, where all weights are trained; else float32."""
    seed: int = 0
    """Of the new weights and the order of the samples."""
    num_workers: int = -1
    """Loading threads of each process; -1 shares the cores of a machine among its processes."""

    log_every: int = 50
    """Steps between two lines of the log."""
    save_every: int = 10
    """Epochs between two checkpoints to resume from, where all weights are trained."""
    resume: bool = True
    """Continue a run that was stopped; else start it over."""
    overwrite: bool = False
    """Replace a finished run of other settings in the same folder."""

    def __post_init__(self) -> None:
        """Refuse settings that no run can have."""
        check_choices(self)
        check_at_least(self, 1, ("epochs", "batch_size", "step_length"))
        check_at_least(self, 1, ("log_every", "save_every"))
        check_at_least(self, 1, ("resolution", "val_resolution"))
        check_at_least(self, 0, ("lr", "weight_decay", "step_ratio"))
        check_shares(self, ("warmup", "start_factor", "end_factor", "momentum"))
        check_shares(self, ("crop_ratio", "min_scale", "label_smoothing"))
        needed = "arch" if self.mode == "from_scratch" else "checkpoint"
        if getattr(self, needed) is None:
            raise ValueError(f"`{needed}` must be given for {self.mode}; got None. Name one.")


# -- by name -------------------------------------------------------------------------------------
# The values are those of DP4TL's files (OPTML-Group/DP4TL, configs/imagenet_transfer_to_downstream
# and configs/downstream_train_from_scratch), except the seed, the number of threads and the
# precision. DP4TL takes the best epoch of the test split; its linear probe sees the whole centre
# square in training and a crop of 7/8 of its side in the test, here of 7/8 in both.

TARGETS = (
    "cifar10",
    "cifar100",
    "dtd",
    "flowers102",
    "food101",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
    "waterbirds",
)
_SMALL_IMAGES = ("cifar10", "cifar100")  # of 32 pixels
_FINETUNED_WITH_SGD = ("food101", "stanford_cars", "sun397", "waterbirds")
_ADAM = {"optimizer": "adam", "weight_decay": 0.0}
_SGD = {"optimizer": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}


class Transfer(Protocol):
    """A function that returns a complete configuration of a probe or a finetuning."""

    __name__: str

    def __call__(
        self, *, checkpoint: Path, train: Path, val: Path, test: Path, run: Path
    ) -> Config:
        """Return it for these files."""
        ...


class Scratch(Protocol):
    """A function that returns a complete configuration of a training without pretraining."""

    __name__: str

    def __call__(self, *, train: Path, val: Path, test: Path, run: Path) -> Config:
        """Return it for these files."""
        ...


def _transfer(target: str, mode: Literal["linear_probe", "full_finetuning"]) -> Transfer:
    """Name DP4TL's recipe of a mode that starts from a checkpoint."""
    values: dict[str, Any] = {**_shared(target), "mode": mode}
    if mode == "linear_probe":
        values |= {**_ADAM, "lr": 1e-2, "epochs": 50}
    elif target in _FINETUNED_WITH_SGD:
        values |= {**_SGD, "lr": 0.1, "epochs": 200}
    else:
        values |= {**_ADAM, "lr": 1e-4, "epochs": 200}

    def config(*, checkpoint: Path, train: Path, val: Path, test: Path, run: Path) -> Config:
        return Config(checkpoint=checkpoint, train=train, val=val, test=test, run=run, **values)

    _describe(config, target, mode, values)
    return config


def _scratch(target: str) -> Scratch:
    """Name DP4TL's recipe without a checkpoint, with the smaller of its two architectures."""
    values: dict[str, Any] = {
        **_shared(target),
        **_SGD,
        "mode": "from_scratch",
        "arch": "resnet18",
        "lr": 0.01 if target in _SMALL_IMAGES else 0.1,
        "epochs": 200,
    }

    def config(*, train: Path, val: Path, test: Path, run: Path) -> Config:
        return Config(train=train, val=val, test=test, run=run, **values)

    _describe(config, target, "from_scratch", values)
    return config


def _shared(target: str) -> dict[str, Any]:
    """Return what the three modes have."""
    return {
        "resolution": 160 if target in _SMALL_IMAGES else 224,
        "crop_ratio": 224 / 256,
        "min_scale": 0.08,
        "flip": True,
        "batch_size": 128,
        "schedule": "cosine",
        "warmup": 0.0,
        "end_factor": 0.0,
        "label_smoothing": 0.0,
    }


def _describe(config: Any, target: str, mode: str, values: dict[str, Any]) -> None:
    config.__name__ = config.__qualname__ = f"{target}_{mode}"
    config.__doc__ = (
        f"Return DP4TL's {mode.replace('_', ' ')} on {target}: {values['epochs']} epochs of "
        f"{values['optimizer']} at {values['lr']}."
    )


# In the order of TARGETS.
_LINEAR_PROBES = [_transfer(target, "linear_probe") for target in TARGETS]
(
    cifar10_linear_probe,
    cifar100_linear_probe,
    dtd_linear_probe,
    flowers102_linear_probe,
    food101_linear_probe,
    oxford_pets_linear_probe,
    stanford_cars_linear_probe,
    sun397_linear_probe,
    ucf101_linear_probe,
    waterbirds_linear_probe,
) = _LINEAR_PROBES

_FULL_FINETUNINGS = [_transfer(target, "full_finetuning") for target in TARGETS]
(
    cifar10_full_finetuning,
    cifar100_full_finetuning,
    dtd_full_finetuning,
    flowers102_full_finetuning,
    food101_full_finetuning,
    oxford_pets_full_finetuning,
    stanford_cars_full_finetuning,
    sun397_full_finetuning,
    ucf101_full_finetuning,
    waterbirds_full_finetuning,
) = _FULL_FINETUNINGS

_FROM_SCRATCH = [_scratch(target) for target in TARGETS]
(
    cifar10_from_scratch,
    cifar100_from_scratch,
    dtd_from_scratch,
    flowers102_from_scratch,
    food101_from_scratch,
    oxford_pets_from_scratch,
    stanford_cars_from_scratch,
    sun397_from_scratch,
    ucf101_from_scratch,
    waterbirds_from_scratch,
) = _FROM_SCRATCH

_ALL: list[Transfer | Scratch] = [*_LINEAR_PROBES, *_FULL_FINETUNINGS, *_FROM_SCRATCH]
CONFIGS = {named.__name__: named for named in _ALL}
"""Every named configuration."""
