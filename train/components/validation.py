"""Accuracy on a split that the processes of a run share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp4tl_ffcv import BetonIndex, evaluation_loader

from .attacks import Attack, pgd
from .precision import Amp, autocast
from .processes import Processes


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A split, and how a model is validated on it. Each sample counts once."""

    index: BetonIndex
    """The beton of the split."""
    ids: NDArray[np.int64]
    """Ids of the samples to validate on."""
    label_map: NDArray[np.int64] | None = None
    """The model's outputs by label in the beton. None if they are equal."""
    batch_size: int
    """Images per batch in each process."""
    resolution: int
    """Side of the centre crops, in pixels."""
    crop_ratio: float
    """Side of the crop / shorter side of the image."""
    num_workers: int | None
    """Loading threads of each process."""
    timeout: float | None
    """Seconds without a read that ends, before an error."""
    amp: Amp = "off"
    """Precision of the forward passes on a GPU."""
    tta: bool = False
    """Use the mean of the outputs for an image and for its mirror image."""
    attack: Attack | None = None
    """Also report the accuracy under this attack."""

    def accuracies(self, model: nn.Module, processes: Processes) -> dict[str, Any]:
        """Return the accuracy, the accuracy of each class, and the accuracy under attack.

        All processes must call this, with the bare model, which stays in evaluation mode. The keys
        of the classes are their labels in the beton.
        """
        model.eval()
        device = processes.device
        ids = processes.share(self.ids)
        labels = torch.tensor(self.index.labels()[ids], device=device)
        hits = robust_hits = torch.zeros(len(ids), dtype=torch.bool, device=device)
        with autocast(self.amp, device):
            if len(ids):
                hits = self._hits(model, ids, device)
            if len(ids) and self.attack:
                robust_hits = self._hits(model, ids, device, self.attack)
        num_classes = self.index.num_classes
        groups = (labels, labels[hits], labels[robust_hits])
        counts = torch.stack([torch.bincount(group, minlength=num_classes) for group in groups])
        total, correct, robust = processes.sum_over(counts).tolist()
        return {
            "val_accuracy": sum(correct) / sum(total),
            "val_accuracy_per_class": {
                str(label): correct[label] / count for label, count in enumerate(total) if count
            },
            "robust_accuracy": sum(robust) / sum(total) if self.attack else None,
        }

    def batches(
        self, ids: NDArray[np.int64], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of samples, and the outputs that the model should have for them."""
        loader = evaluation_loader(
            self.index,
            batch_size=self.batch_size,
            resolution=self.resolution,
            indices=ids,
            crop_ratio=self.crop_ratio,
            num_workers=self.num_workers,
            timeout=self.timeout,
            device=device,
        )
        outputs = None if self.label_map is None else torch.tensor(self.label_map, device=device)
        for images, labels in loader:
            yield images, labels if outputs is None else outputs[labels]

    @torch.no_grad()
    def _hits(
        self,
        model: nn.Module,
        ids: NDArray[np.int64],
        device: torch.device,
        attack: Attack | None = None,
    ) -> Tensor:
        hits = []
        for images, labels in self.batches(ids, device):
            outputs = model(pgd(model, images, labels, attack) if attack else images)
            if self.tta and not attack:
                outputs = outputs + model(images.flip(3))
            hits.append(outputs.argmax(1) == labels)
        return torch.cat(hits)
