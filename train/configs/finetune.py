"""Settings of `train.finetune`, and DP4TL's configurations of ten targets by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .common import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class Config(SupervisedConfig):
    """Settings of a finetuning run."""

    checkpoint: Path | None = None
    """Run folder of `dp4tl pretrain`, or a checkpoint, also of another program. The mode
    from_scratch needs none."""
    val: Path | None = None
    """Beton to choose the epoch on, instead of val.beton in --data."""
    test: Path | None = None
    """Beton to test on, instead of test.beton in --data."""
    mode: Literal["linear_probe", "full_finetuning", "from_scratch"] = "linear_probe"
    """Train a new head on frozen features, or all weights, or all weights without pretraining."""
    arch: str | None = None
    """Architecture that the checkpoint must have, or to train from scratch."""

    resolution: int = 224
    """Side of the crops, in pixels."""
    epochs: int = 50
    """Passes over the training split."""
    batch_size: int = 128
    """Images per step, over all processes or in each; see --batch-per."""
    lr: float = 1e-2
    """Highest learning rate; see --lr-per. 1e-4 suits full finetuning with Adam."""
    save_every: int = 10
    """Epochs between two saved states to resume from. A linear probe saves no state."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.beton("val")
        self.beton("test")
        needed = "arch" if self.mode == "from_scratch" else "checkpoint"
        if getattr(self, needed) is None:
            raise ValueError(f"`{needed}` is required for {self.mode}.")


# -- by name -------------------------------------------------------------------------------------
# The values are those of DP4TL's files (OPTML-Group/DP4TL, configs/imagenet_transfer_to_downstream
# and configs/downstream_train_from_scratch). The defaults of `Config` equal the published values,
# except for the seed, the number of threads and the precision, which are ours.
# DP4TL chooses the epoch on the test split. Its linear probe trains on the whole centre square and
# tests on a crop of 7/8 of its side; here both crop to 7/8.

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
_SMALL_IMAGES = ("cifar10", "cifar100")  # 32 pixels
_FINETUNED_WITH_SGD = ("food101", "stanford_cars", "sun397", "waterbirds")
_ADAM = {"optimizer": "adam", "weight_decay": 0.0}
_SGD = {"optimizer": "sgd", "weight_decay": 5e-4}


def _dp4tl(target: str, mode: str) -> dict[str, Any]:
    """Return DP4TL's settings; the from-scratch settings are those of ResNet-18."""
    if mode == "linear_probe":
        own = {**_ADAM, "lr": 1e-2, "epochs": 50}
    elif mode == "from_scratch":
        lr = 0.01 if target in _SMALL_IMAGES else 0.1
        own = {**_SGD, "lr": lr, "epochs": 200, "arch": "resnet18"}
    elif target in _FINETUNED_WITH_SGD:
        own = {**_SGD, "lr": 0.1, "epochs": 200}
    else:
        own = {**_ADAM, "lr": 1e-4, "epochs": 200}
    return {
        "mode": mode,
        **own,
        "resolution": 160 if target in _SMALL_IMAGES else 224,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    f"{target}_{mode}": _dp4tl(target, mode)
    for mode in ("linear_probe", "full_finetuning", "from_scratch")
    for target in TARGETS
}
"""Settings by name: `Config(train=..., run=..., **CONFIGS["dtd_linear_probe"])`."""
