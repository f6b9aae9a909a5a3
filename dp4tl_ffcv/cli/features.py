"""The verb features."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Features:
    """Save a model's features and predictions for every image of a beton.

    To continue a killed run, repeat the command. Several GPUs share the work
    under `torchrun --nproc-per-node N --no-python dp4tl features ...`.
    """

    beton: Annotated[Path, tyro.conf.Positional]
    """Source or target, with fields image and label."""
    model: str
    """Checkpoint, or an architecture of torchvision or timm:NAME with its pretrained weights."""
    out: Path
    """Folder to write."""
    arch: str | None = None
    """Architecture, of torchvision or timm:NAME. Another program's checkpoint needs it."""
    num_classes: int | None = None
    """Fail unless the checkpoint has this number of classes."""
    mean: tuple[float, float, float] | None = None
    """Mean per channel that another program's model was trained with, for pixels in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Standard deviation per channel, as for --mean."""
    headless: bool = False
    """Save only features: no predictions, soft votes or logits."""
    resolution: int = 224
    """Side of the centre crop in pixels, after resizing."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    logits: bool = False
    """Save the logits too, which EL2N needs."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the features on disk."""
    amp: bool = True
    """On a GPU, compute in mixed precision."""
    restart: bool = False
    """Start over if the folder contains features made with other settings."""
    batch_size: int = 256
    """Images per forward pass, rounded down to a power of two (300 runs as 256) of at most 4096."""
    num_workers: int | None = None
    """Loading threads per process. Without it, the processes share all cores."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Extract the features."""
        from .. import extract_features

        return extract_features(
            self.model,
            self.beton,
            self.out,
            arch=self.arch,
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            headless=self.headless,
            resolution=self.resolution,
            crop_ratio=self.crop_ratio,
            logits=self.logits,
            dtype=self.dtype,
            amp=self.amp,
            restart=self.restart,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )
