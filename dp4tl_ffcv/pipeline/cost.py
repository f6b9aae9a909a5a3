"""What pruning will cost, from a short measurement."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..beton import BetonIndex
from ..distributed import best_device
from ..loading import evaluation_loader
from ..scoring import methods
from ..scoring.surrogate.checkpoints import ModelLike, load_model
from .inputs import Data, betons_of

_MEASURED = 64  # images that are timed, after as many that are not


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Expected cost of the features, which is nearly all of the cost of pruning."""

    images: int
    """Images that the surrogate sees."""
    images_per_second: float
    """Measured: decoded and run through the surrogate, on one GPU or on all cores."""
    feature_bytes: int
    """Size of the features on disk."""

    @property
    def seconds(self) -> float:
        """Time of the extraction."""
        return self.images / self.images_per_second if self.images else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "images": self.images,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "feature_bytes": self.feature_bytes,
        }


def pruning_cost(  # noqa: PLR0913  # options are named at the call
    source: Data,
    target: Data | Sequence[Data],
    *,
    surrogate: ModelLike,
    method: str = "label_mapping",
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resolution: int = 224,
    crop_ratio: float = 224 / 256,
    num_workers: int | None = None,
    timeout: float | None = 10.0,
) -> Cost:
    """Measure the surrogate on a few images of a target, and return what `prune` will cost.

    The arguments are those of `prune`. Features that a folder holds already are not subtracted.
    """
    index, targets = betons_of(source, target)
    scoring = methods.get(method.replace("-", "_"))
    flags = scoring.flags
    read = [*(targets if "target" in flags else ()), *([index] if "source" in flags else ())]
    images = sum(each.num_samples for each in read)
    if not images:
        return Cost(images=0, images_per_second=1.0, feature_bytes=0)
    model, _ = load_model(surrogate, arch=arch, num_classes=None, mean=mean, std=std)
    options = {"resolution": resolution, "crop_ratio": crop_ratio, "num_workers": num_workers}
    rate, width, classes = _measured(model, targets[0], {**options, "timeout": timeout})
    numbers = width + (classes if scoring.outputs == "logits" else 0)
    return Cost(images=images, images_per_second=rate, feature_bytes=4 * numbers * images)


@torch.inference_mode()
def _measured(model: Any, index: BetonIndex, options: dict[str, Any]) -> tuple[float, int, int]:
    """Return images per second, and the numbers of features and outputs."""
    device = best_device()
    model.to(device).eval()
    seen = min(_MEASURED, index.num_samples)
    for is_timed in (False, True):
        started = time.perf_counter()
        for images, _ in evaluation_loader(
            index, batch_size=seen, indices=range(seen), device=device, **options
        ):
            outputs, features = model.features(images)
            features.float().cpu()
        if is_timed:
            break
    seconds = time.perf_counter() - started
    return seen / seconds, features.shape[1], 0 if outputs is None else outputs.shape[1]
