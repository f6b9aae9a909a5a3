"""The verb features."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .output import Output

if TYPE_CHECKING:
    from ..beton import BetonIndex


@dataclass(frozen=True, kw_only=True)
class Features:
    """Run a surrogate over a beton; keep its features and predictions in a folder.

    A run that was killed is continued by the same command. Several GPUs share the work under
    `torchrun --nproc-per-node N --no-python dp4tl features ...`.
    """

    beton: Annotated[Path, tyro.conf.Positional]
    """Source or target, with fields image and label."""
    checkpoint: Path
    """Surrogate or encoder: a checkpoint of train.pretrain, or another program's state dict."""
    out: Path
    """Folder to write."""
    arch: str | None = None
    """Architecture, of torchvision or timm:NAME: to insist on, or what another program's needs."""
    num_classes: int | None = None
    """Classes to insist on."""
    mean: tuple[float, float, float] | None = None
    """Of the channels, for pixels in [0, 1], where another program's surrogate has its own."""
    std: tuple[float, float, float] | None = None
    """Likewise."""
    headless: bool = False
    """Leave the classifier off: features alone."""
    resolution: int = 224
    """Side of the centre crop in pixels, after resizing."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    logits: bool = False
    """Keep the logits, too: EL2N needs them. Predictions and softmax mass are kept either way."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the features on the disk."""
    amp: bool = True
    """On a GPU, compute in half precision where torch deems that safe."""
    restart: bool = False
    """Start over where there is a folder that another command or version began."""
    batch_size: int = 256
    """Images per pass."""
    num_workers: int = -1
    """Loading threads of each process; -1 shares the cores out among them."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any] | None:
        """Extract; only the first process has something to say."""
        from ..distributed import process_group, rank

        with process_group() as device:
            result = self._extract(device)
            return result if rank() == 0 else None

    def _extract(self, device: Any) -> dict[str, Any]:
        import numpy as np

        from ..beton import BetonIndex
        from ..extraction import extract_features
        from ..loading import evaluation_loader
        from ..scoring.surrogate import load_checkpoint

        model = load_checkpoint(
            self.checkpoint,
            arch=self.arch,
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            headless=self.headless,
        ).to(device)
        index = BetonIndex.open(self.beton)

        def load(indices: Any) -> Any:
            return evaluation_loader(
                self.beton,
                batch_size=self.batch_size,
                resolution=self.resolution,
                crop_ratio=self.crop_ratio,
                num_workers=self._threads(),
                device=device,
                indices=indices,
            )

        features = extract_features(
            model,
            load,
            np.arange(index.num_samples),
            self.out,
            logits=self.logits,
            dtype=self.dtype,
            amp=self.amp,
            restart=self.restart,
            checkpoint=self.checkpoint,
            provenance={
                "beton_fingerprint": index.fingerprint,
                "beton_classes": _classes_of(index),
                "resolution": self.resolution,
                "crop_ratio": self.crop_ratio,
            },
        )
        return {
            "out": str(self.out),
            "samples": len(features),
            "classes": features.num_outputs,
            "features": features.features.shape[1],
        }

    def _threads(self) -> int:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if self.num_workers != -1 or processes == 1:
            return self.num_workers
        return max(1, len(os.sched_getaffinity(0)) // processes)


def _classes_of(index: "BetonIndex") -> int | None:
    """Return the beton's number of classes, those without a sample included."""
    from ..errors import BetonError

    try:
        return index.num_classes
    except BetonError:  # labels below 0: samples without a class have features all the same
        return None
