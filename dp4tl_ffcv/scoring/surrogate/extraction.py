"""Run a surrogate over a dataset."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...artifacts import sha256_of_file
from ..features import Features
from .models import Classifier

__all__ = ["extract_features"]


def extract_features(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    indices: NDArray[np.int64],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Features:
    """Run a surrogate in evaluation mode and collect logits and features in one pass.

    Args:
        model: the surrogate, on the device of the batches.
        batches: images `(B, 3, H, W)` and labels `(B,)`, in the order of `indices`.
        indices: sample ids `(n,)`.
        checkpoint: file that the surrogate came from, recorded by its SHA-256.
        provenance: further facts to record.

    Raises:
        ValueError: the batches do not add up to n samples.
    """
    model.eval()
    logits, features, labels = [], [], []
    with torch.inference_mode():
        for images, targets in batches:
            outputs, pooled = model.features(images)
            logits.append(outputs.float().cpu().numpy())
            features.append(pooled.float().cpu().numpy())
            labels.append(targets.reshape(-1).cpu().numpy().astype(np.int64))
    count = sum(map(len, labels))
    if count != len(indices) or not count:
        raise ValueError(
            f"`batches` must hold {len(indices)} samples, at least one; got {count}. "
            "Load without drop_last."
        )
    source = {"checkpoint_sha256": sha256_of_file(checkpoint)} if checkpoint else {}
    return Features(
        logits=np.concatenate(logits),
        features=np.concatenate(features),
        labels=np.concatenate(labels),
        indices=np.asarray(indices, dtype=np.int64),
        provenance={
            "arch": model.arch,
            "trained_on": model.trained_on,
            **source,
            **(provenance or {}),
        },
    )
