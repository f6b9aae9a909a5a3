"""Load the model that a caller names: a classifier, a checkpoint file or an architecture."""

import os
from pathlib import Path
from typing import Any

from ...artifacts import sha256_of_file
from .checkpoints import load_checkpoint
from .models import Classifier, is_architecture, pretrained_model

ModelLike = Classifier | str | os.PathLike[str]


def load_model(model: ModelLike, **options: Any) -> tuple[Classifier, dict[str, str]]:
    """Return a classifier, and the provenance of its weights.

    An architecture means the pretrained weights of torchvision or timm. Options are passed to
    `load_checkpoint`; only a checkpoint may have any. None and False mean not given.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: see `load_checkpoint`; or the pretrained weights cannot be downloaded.
        ValueError: an option was given, but `model` is not a checkpoint.
    """
    if not isinstance(model, Classifier) and (
        Path(model).exists() or not is_architecture(str(model))
    ):
        classifier = load_checkpoint(model, **options)
        return classifier, {"checkpoint_sha256": sha256_of_file(model)}
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"`{name}` describes a checkpoint file; leave it out for this model.")
    return (model if isinstance(model, Classifier) else pretrained_model(str(model))), {}
