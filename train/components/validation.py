"""Accuracy on a validation split that the processes of a run share: each sample counts once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp4tl_ffcv import BetonIndex, evaluation_loader

from .attacks import Attack, robust_accuracy
from .processes import Processes


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A split, and how a model is validated on it."""

    index: BetonIndex
    """Of the beton."""
    ids: NDArray[np.int64]
    """The samples that count."""
    label_map: NDArray[np.int64] | None
    """Outputs of the model by the beton's labels; None if they are the same."""
    batch_size: int
    """Images of a forward pass in each process."""
    resolution: int
    """Side of the centre crops in pixels."""
    crop_ratio: float
    """Side of the crop / shorter side of the image."""
    num_workers: int
    """Loading threads of each process."""
    tta: bool = False
    """Take the mean of an image's outputs and its mirror image's."""
    attack: Attack | None = None
    """Report the accuracy under this attack as well."""

    def accuracies(
        self, model: nn.Module, group: Processes, autocast: torch.autocast
    ) -> dict[str, Any]:
        """Return the accuracy over all processes, that of each class, and that under attack.

        Classes go by their labels in the beton. The model is left in evaluation mode.

        Args:
            model: takes pixel values; not wrapped, since the processes' batches differ.
            group: the processes, each of which calls this.
            autocast: the precision of the forward passes.
        """
        model.eval()
        ids = group.share(self.ids)
        labels = torch.tensor(self.index.labels()[ids], device=group.device)
        hits = robust_hits = torch.zeros(len(ids), dtype=torch.bool, device=group.device)
        with autocast:
            if len(ids):
                hits = self._hits(model, ids, group.device)
            if len(ids) and self.attack:
                batches = self._batches(ids, group.device)
                robust_hits = robust_accuracy(model, batches, self.attack)
        num_classes = self.index.num_classes
        parts = (labels, labels[hits], labels[robust_hits])
        counts = torch.stack([torch.bincount(part, minlength=num_classes) for part in parts])
        total, correct, robust = group.sum_over(counts).tolist()
        return {
            "val_accuracy": sum(correct) / sum(total),
            "val_accuracy_per_class": {
                str(label): correct[label] / count for label, count in enumerate(total) if count
            },
            "robust_accuracy": sum(robust) / sum(total) if self.attack else None,
        }

    @torch.inference_mode()
    def _hits(self, model: nn.Module, ids: NDArray[np.int64], device: torch.device) -> Tensor:
        """Say of each sample whether the model is right, bool (n,)."""
        hits = []
        for images, labels in self._batches(ids, device):
            outputs = model(images)
            if self.tta:
                outputs = outputs + model(images.flip(3))
            hits.append(outputs.argmax(1) == labels)
        return torch.cat(hits)

    def _batches(
        self, ids: NDArray[np.int64], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, and as labels the model's outputs for them."""
        loader = evaluation_loader(
            self.index.path,
            batch_size=self.batch_size,
            resolution=self.resolution,
            indices=ids,
            crop_ratio=self.crop_ratio,
            num_workers=self.num_workers,
            device=device,
        )
        outputs = None if self.label_map is None else torch.tensor(self.label_map, device=device)
        for images, labels in loader:
            yield images, labels if outputs is None else outputs[labels]
