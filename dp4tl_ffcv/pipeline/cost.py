"""Estimate the cost of pruning from a short measurement."""

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
from ..scoring.surrogate.models import build_model
from .inputs import Data, betons_of
from .surrogate import surrogate_settings

_OF_GRADIENTS = 3  # times the cost of features
_FEW, _MANY = 64, 1024  # images that are timed
_ENOUGH = 2.0  # seconds for a few images, after which many are not timed


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Expected cost of the surrogate and its features, which is nearly all that pruning costs."""

    images: int
    """Images that the surrogate runs on. Gradients of an image count as three."""
    trained_images: int
    """Images that the surrogate is trained on, times the epochs; 0 if it is trained already."""
    images_per_second: float
    """Measured: decoded and run through the surrogate, on one GPU or on all cores."""
    feature_bytes: int
    """Size of the features on disk."""

    @property
    def seconds(self) -> float:
        """Time of training, three times that of extraction per image, and of extraction."""
        return (self.images + 3 * self.trained_images) / self.images_per_second

    def summary(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "images": self.images,
            "trained_images": self.trained_images,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "feature_bytes": self.feature_bytes,
        }


def pruning_cost(  # noqa: PLR0913  # options are named at the call
    source: Data,
    target: Data | Sequence[Data],
    *,
    surrogate: ModelLike | None = None,
    method: str = "label_mapping",
    arch: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resolution: int | None = None,
    crop_ratio: float = 224 / 256,
    num_workers: int | None = None,
    timeout: float | None = 10.0,
) -> Cost:
    """Measure the surrogate on a few images of a target, and return what `prune` will cost.

    The arguments are those of `prune`. Without a surrogate, the cost includes training the small
    classifier that `dp4tl prune` trains then. Features that a folder holds already are not
    subtracted.
    """
    index, targets = betons_of(source, target)
    scoring = methods.get(method.replace("-", "_"))
    flags = scoring.flags
    read = [*(targets if "target" in flags else ()), *([index] if "source" in flags else ())]
    read += [index] * (_OF_GRADIENTS if "models" in flags else 0)
    images = sum(each.num_samples for each in read)
    if not images:
        return Cost(images=0, trained_images=0, images_per_second=1.0, feature_bytes=0)
    trained = 0
    if surrogate is None:
        settings = surrogate_settings(index)
        model = build_model(settings["arch"], index.num_classes)
        resolution = resolution or settings["resolution"]
        trained = settings["epochs"] * index.num_samples
    else:
        model, _ = load_model(surrogate, arch=arch, num_classes=None, mean=mean, std=std)
    options = {
        "resolution": resolution or 224,
        "crop_ratio": crop_ratio,
        "num_workers": num_workers,
        "timeout": timeout,
    }
    rate, width, classes = _measured(model, targets[0], options)
    numbers = width + (classes if scoring.outputs == "logits" else 0)
    stored = 0 if "models" in flags else images
    return Cost(
        images=images,
        trained_images=trained,
        images_per_second=rate,
        feature_bytes=4 * numbers * stored,
    )


@torch.inference_mode()
def _measured(model: Any, index: BetonIndex, options: dict[str, Any]) -> tuple[float, int, int]:
    """Return images per second, and the numbers of features and outputs."""
    device = best_device()
    model.to(device).eval()

    def extract(count: int) -> tuple[float, int, int]:
        started = time.perf_counter()
        for images, _ in evaluation_loader(
            index, batch_size=_FEW, indices=range(count), device=device, **options
        ):
            outputs, features = model.features(images)
            features.float().cpu()
        seconds = time.perf_counter() - started
        return seconds, features.shape[1], 0 if outputs is None else outputs.shape[1]

    few, many = min(_FEW, index.num_samples), min(_MANY, index.num_samples)
    extract(few)  # compiles
    start, width, classes = extract(few)
    if start > _ENOUGH or many <= few:
        return few / start, width, classes
    # Less the time to start a loader, which a whole extraction takes once.
    seconds = max(extract(many)[0] - start, 1e-6)
    return (many - few) / seconds, width, classes
