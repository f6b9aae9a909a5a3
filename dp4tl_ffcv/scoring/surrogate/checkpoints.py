"""Surrogates on disk: what this project writes, and other programs' weights."""

import os
import zipfile

import torch

from ...artifacts import atomic_open
from ...errors import CheckpointError
from .models import Classifier, build_model

__all__ = ["load_checkpoint", "save_checkpoint"]

_CHECKPOINT_KEYS = {"arch", "num_classes", "mean", "std", "network"}


def save_checkpoint(path: str | os.PathLike[str], model: Classifier) -> None:
    """Write the network, its architecture and its normalisation, atomically."""
    mean, std = model.channels
    state = {name: value.detach().cpu() for name, value in model.network.state_dict().items()}
    values = {
        "arch": model.arch,
        "num_classes": model.num_classes,
        "mean": list(mean),
        "std": list(std),
        "trained_on": model.trained_on,
        "network": state,
    }
    with atomic_open(path) as stream:
        torch.save(values, stream)


def load_checkpoint(path: str | os.PathLike[str], *, arch: str | None = None) -> Classifier:
    """Read what `save_checkpoint` wrote; nothing is unpickled.

    Args:
        path: the checkpoint.
        arch: the architecture that the caller expects; None takes the recorded one.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint, is of another architecture than `arch`, or its
            weights do not fit the architecture that it names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # the checksums, which torch passes over
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged or foreign file
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened; an OSError without a name comes from reading it
        raise _no_checkpoint(path) from error
    if damaged or not isinstance(values, dict) or not values.keys() >= _CHECKPOINT_KEYS:
        raise _no_checkpoint(path)
    if arch is not None and values["arch"] != arch:
        raise CheckpointError(
            f"`path` must be a checkpoint of {arch}; got one of {values['arch']}, {str(path)!r}. "
            "Name its architecture, or pass another checkpoint."
        )
    try:
        network = build_model(values["arch"], values["num_classes"]).network
        network.load_state_dict(values["network"])
        channels = tuple(values["mean"]), tuple(values["std"])
        model = Classifier(network, values["arch"], values["num_classes"], *channels)
    except Exception as error:  # torch and torchvision raise several kinds for wrong values, too
        raise CheckpointError(
            f"`path` must hold the weights of {values['arch']} with {values['num_classes']} "
            f"classes; got others in {str(path)!r}. It is damaged or was altered."
        ) from error
    model.trained_on = values.get("trained_on")
    return model


def _no_checkpoint(path: str | os.PathLike[str]) -> CheckpointError:
    return CheckpointError(
        f"`path` must be a checkpoint written by this project; got {str(path)!r}. "
        "Train one with `python -m train.pretrain`."
    )
