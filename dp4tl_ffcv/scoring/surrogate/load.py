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

    The name of an architecture loads the pretrained weights of torchvision or timm. `options` are
    passed to `load_checkpoint`, and must be None or False for a model that is not a checkpoint.
    """
    if not isinstance(model, Classifier) and (
        Path(model).exists() or not is_architecture(str(model))
    ):
        classifier = load_checkpoint(model, **options)
        return classifier, {"checkpoint_sha256": sha256_of_file(model)}
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"`{name}` is for a checkpoint file. Leave it out for this model.")
    return (model if isinstance(model, Classifier) else pretrained_model(str(model))), {}
