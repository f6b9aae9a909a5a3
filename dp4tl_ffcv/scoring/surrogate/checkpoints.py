"""Save and load models: this project's checkpoints, and the state dicts of other programs.

No code in a file is run: files may only hold tensors, plain containers and numpy numbers.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from ...errors import CheckpointError
from ...runs import checkpoint_of
from ...stored import sha256_of_file
from .checkpoint_files import read_entries, write_entries
from .models import Classifier, full_name
from .pretrained import is_pretrained, pretrained_model
from .state_dicts import find_weights, load_weights, own_weights

ModelLike = Classifier | str | os.PathLike[str]

_SHOWN = 200  # characters of a name in an error


def save_checkpoint(path: str | os.PathLike[str], model: Classifier) -> None:
    """Write the weights, architecture, normalisation and class names of a model, atomically."""
    mean, std = model.channels
    values = {
        "arch": model.arch,
        "num_classes": model.num_classes,
        "mean": list(mean),
        "std": list(std),
        "trained_on": model.trained_on,
        "class_names": list(model.class_names),
        "network": {name: v.detach().cpu() for name, v in model.network.state_dict().items()},
    }
    write_entries(path, values)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    headless: bool = False,
) -> Classifier:
    """Load a model from a checkpoint of this project, or from another program's state dict.

    The file comes from `torch.save`, or is `.safetensors` if safetensors is installed. Another
    program's weights may lie anywhere in it: the whole file (ffcv-imagenet), or an entry such as
    `state_dict` (Lightning, MoCo, timm), `model` (torchvision, DeiT, robustness) or
    `state_dicts.network` (DP4TL), under any prefix. Components that DDP, FSDP, torch.compile and
    activation checkpointing add to keys are ignored. The largest group of keys under one prefix
    that has all weights of `arch`, except for the head, and no others is loaded. Of two such groups
    of equal size, a moving average (a name with `ema`) is loaded; of others, none. A warning names
    what is left out. The blurred convolutions of ffcv-imagenet are restored.

    The result is an encoder, with `num_classes` None, if `headless` is set, if the group has no
    weights for the head, or if it comes from MoCo, whose query encoder is loaded without its
    projection head.

    Weights of half precision are converted to float32. Peak memory is the size of the file and of
    the model.

    Args:
        path: the checkpoint, or the folder of a finished run.
        arch: architecture, see `build_model`. Other programs' files need it. A checkpoint of this
            project records `arch`, `mean` and `std`; if one is given, it must agree.
        num_classes: number of classes that the caller expects; None accepts any.
        mean: mean per channel of the training images, for pixels in [0, 1]; None takes the default
            of `arch`.
        std: standard deviation per channel, as for `mean`.
        headless: leave the head off.

    Raises:
        OSError: the file cannot be opened.
        CheckpointError: the file is not a checkpoint, does not fit the arguments, holds several
            networks that fit, or holds weights that are integers, NaN or infinite.
        ValueError: there is no architecture `arch`.
    """
    mean, std = (None if values is None else tuple(values) for values in (mean, std))
    path = checkpoint_of(path)
    try:
        values = read_entries(path)
        if len(values.keys() & _IS_VALID.keys()) >= len(_IS_VALID) - 1:  # one may be missing
            model = _recorded(values, headless)
            if arch not in (None, model.arch):  # a model that the caller built has any name
                _check_same("arch", full_name(str(arch)), model.arch)
            _check_same("mean", mean, model.channels[0])
            _check_same("std", std, model.channels[1])
        else:
            model = _foreign(values, arch, headless, Path(path))
            channels = mean or model.channels[0], std or model.channels[1]
            model = Classifier(model.network, model.arch, model.num_classes, *channels)
        _check_same("num_classes", num_classes, model.num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {str(path)!r}: {error}") from error
    return model


def load_model(model: ModelLike, **options: Any) -> tuple[Classifier, dict[str, str]]:
    """Return a classifier, and the provenance of its weights.

    The name of a file loads this checkpoint, and the name of a run folder the run's. Any other name
    is that of a pretrained model, see `pretrained_model`. `options` are passed to
    `load_checkpoint`, and must be None or False for a model that is not a checkpoint.
    """
    is_name = not isinstance(model, Classifier) and is_pretrained(str(model))
    if not isinstance(model, Classifier) and is_checkpoint(model):
        if is_name:
            warnings.warn(
                f"loaded the file {str(model)!r} in the working folder, not the pretrained model "
                f"of this name. Write ./{model}, or move the file.",
                stacklevel=3,
            )
        file = checkpoint_of(model)
        return load_checkpoint(file, **options), {"checkpoint_sha256": sha256_of_file(file)}
    if not (isinstance(model, Classifier) or is_name):
        raise CheckpointError(
            f"{str(model)!r} is neither a checkpoint, a run folder nor the name of a pretrained "
            "model: an architecture of torchvision, timm:NAME or efficientnet-lite0."
        )
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"`{name}` is for a checkpoint file. Leave it out for this model.")
    if isinstance(model, Classifier):
        return model, {}
    loaded, weights = pretrained_model(str(model))
    return loaded, {"weights": weights}


def is_checkpoint(model: str | os.PathLike[str]) -> bool:
    """Return whether a file or run folder is meant, not a pretrained model by name."""
    return Path(model).exists() and not (is_pretrained(str(model)) and Path(model).is_dir())


def _recorded(values: Mapping[str, Any], headless: bool) -> Classifier:
    """Build the model that a checkpoint of this project describes."""
    checks = _IS_VALID | {name: _OPTIONAL[name] for name in _OPTIONAL if name in values}
    wrong = [name for name in checks if not (name in values and checks[name](values[name]))]
    if wrong:
        fault = "is not valid" if wrong[0] in values else "is missing"
        raise CheckpointError(f"its entry {wrong[0]!r} {fault}. It is damaged or was altered.")
    arch, num_classes = values["arch"], values["num_classes"]
    names = values.get("class_names", [])
    if names and len(names) != num_classes:
        raise CheckpointError(
            f"it has {len(names)} class names for {num_classes} classes. It is damaged or was "
            "altered."
        )
    try:
        weights = own_weights(values["network"], arch, headless=headless)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"its arch is {shorten(arch, _SHOWN)!r}: {error}") from error
    if not headless and weights.num_classes != num_classes:
        raise CheckpointError(
            f"its weights are of {weights.num_classes} classes, not of {num_classes}. It is "
            "damaged or was altered."
        )
    model = load_weights(arch, weights)
    model = Classifier(model.network, arch, model.num_classes, values["mean"], values["std"])
    model.trained_on = values.get("trained_on")
    if not headless:
        model.class_names = names
    return model


def _foreign(values: Mapping[Any, Any], arch: str | None, headless: bool, path: Path) -> Classifier:
    """Build the model whose weights another program's checkpoint holds."""
    if arch is None:
        raise CheckpointError(
            "another program's checkpoint does not record its architecture. Pass `arch`, such as "
            "resnet18."
        )
    weights, left_out = find_weights(values, arch, headless=headless)
    if left_out:
        where = f"{weights.name!r}" if weights.prefix else "the state dict"
        warnings.warn(
            f"{str(path)!r}: loaded the weights in {where}, and left out "
            f"{shorten(', '.join(left_out), _SHOWN)}.",
            stacklevel=3,
        )
    return load_weights(arch, weights)


def _is_channels(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, float | int) and math.isfinite(value) for value in values)
    )


# The entries of this project's checkpoints.
_IS_VALID: dict[str, Callable[[Any], bool]] = {
    "arch": lambda value: isinstance(value, str),
    "num_classes": lambda value: value is None or (type(value) is int and value > 0),
    "mean": _is_channels,
    "std": lambda values: _is_channels(values) and min(values) > 0,
    "network": lambda value: isinstance(value, Mapping),
}
# Entries that checkpoints of earlier versions lack.
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "trained_on": lambda value: value is None or isinstance(value, str),
    "class_names": lambda value: (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    ),
}


def _check_same(name: str, expected: Any, found: Any) -> None:
    if expected is not None and expected != found:
        raise CheckpointError(
            f"its {name} is {found}, not {expected}. Leave `{name}` out, or pass another file."
        )
