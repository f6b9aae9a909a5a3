"""Settings of `train.pretrain_moco`, and the configurations of MoCo v2 by name."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dp4tl_ffcv.utils import check_range

from .common import RunConfig, check_fields


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Strength and probability of the augmentations; defaults of MoCo v2 (arXiv 2003.04297)."""

    brightness: float = 0.4
    """Brightness factors are drawn from [1 - brightness, 1 + brightness], but never below 0."""
    contrast: float = 0.4
    """Contrast factors are drawn in the same way."""
    saturation: float = 0.4
    """Saturation factors are drawn in the same way."""
    hue: float = 0.1
    """Hue shifts are drawn from [-hue, hue], in turns of the colour wheel."""
    jitter_probability: float = 0.8
    """Probability of the four changes above, together and in a random order."""
    grey_probability: float = 0.2
    """Probability of greyscale."""
    blur_probability: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""

    def __post_init__(self) -> None:
        """Check the settings."""
        names = "jitter_probability grey_probability blur_probability"
        check_fields(self, names, at_least=0, at_most=1)
        check_fields(self, "brightness contrast saturation", at_least=0)
        check_fields(self, "hue", at_least=0, at_most=0.5)
        check_range("blur_sigma", self.blur_sigma)

    @property
    def blur_radius(self) -> int:
        """Radius of the widest blur in pixels: three standard deviations."""
        return math.ceil(3 * self.blur_sigma[1])


@dataclass(frozen=True, kw_only=True)
class Config(Augmentation, RunConfig):
    """Settings of a self-supervised pretraining run; defaults of MoCo v2 (arXiv 2003.04297)."""

    selection: Path | None = None
    """Selection of classes or pseudo-classes, made for the training beton, whose labels are not
    read. None trains on all samples."""

    arch: str = "resnet50"
    """A classifier of torchvision, or resnet8_w16 or resnet8_w32 for images of 32 to 64 pixels."""
    projection_size: int = 128
    """Size of the vectors that the contrastive loss compares."""
    norm_batch: int | None = 32
    """Images per batch-norm statistic in training, as on each of MoCo's GPUs. None takes all images
    of the process. Keys are shuffled, so that statistics do not reveal which images match."""

    resolution: int = 224
    """Side of the crops, in pixels."""
    min_scale: float = 0.2
    """Smallest area of a random crop, as a fraction of the image."""

    queue: int = 65536
    """Keys of earlier images to compare with: a multiple of the images of a step."""
    temperature: float = 0.2
    """Temperature of the contrastive loss."""
    key_momentum: float = 0.999
    """Fraction of its weights that the key network keeps in each step."""

    epochs: int = 200
    """Passes over the retained samples."""
    iterations: int | None = None
    """Optimiser steps instead of epochs, to compare selections at equal compute."""
    batch_size: int = 256
    """Images per step, over all processes or in each; see --batch-per."""
    lr: float = 0.03
    """Highest learning rate, reached after the warm-up; see --lr-per."""
    optimizer: Literal["adamw", "adam", "sgd"] = "sgd"
    """Adam with decoupled weight decay or with weight decay in the gradient, or SGD."""
    weight_decay: float = 1e-4
    """Weight decay, decoupled in AdamW."""
    amp: Literal["bf16", "off"] = "bf16"
    """Precision of the networks on a GPU. The loss, and everything on a CPU, is in float32."""

    cache: str = "auto"
    """How the loader reads: auto, extents or ram."""
    order: str = "random"
    """Order of the samples, such as random, or quasi_random for files larger than memory."""

    def __post_init__(self) -> None:
        """Check the settings."""
        RunConfig.__post_init__(self)
        Augmentation.__post_init__(self)
        check_fields(self, "iterations queue projection_size norm_batch", at_least=1)
        check_fields(self, "temperature", at_least=1e-3)
        check_fields(self, "key_momentum", at_least=0, at_most=1)
        if self.resolution <= self.blur_radius:
            raise ValueError(
                f"`resolution` must be above the radius of the blur, {self.blur_radius} pixels; "
                f"got {self.resolution}. Raise it, or lower `blur_sigma`."
            )


# Table 2 of arXiv 2003.04297. The paper on LM and FM also shows a ResNet-101; a ResNet-18 is a
# small surrogate for FM.
CONFIGS: dict[str, dict[str, Any]] = {
    "moco_rn18_200": {"arch": "resnet18", "epochs": 200},
    "moco_rn18_800": {"arch": "resnet18", "epochs": 800},
    "moco_rn50_200": {"arch": "resnet50", "epochs": 200},
    "moco_rn50_800": {"arch": "resnet50", "epochs": 800},
    "moco_rn101_200": {"arch": "resnet101", "epochs": 200},
}
"""Settings by name: `Config(train=..., run=..., **CONFIGS["moco_rn18_200"])`."""
