"""Save and load models: this project's checkpoints, and the state dicts of other programs.

No code in a file is run: files may only hold tensors, plain containers and numpy numbers.
"""

import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...artifacts import atomic_open, sha256_of_file
from ...errors import CheckpointError, requires
from .models import (
    BlurPoolConv,
    Classifier,
    build_model,
    full_name,
    is_architecture,
    pretrained_model,
    replace_head,
)

ModelLike = Classifier | str | os.PathLike[str]

_CHECKPOINT_KEYS = {"arch", "num_classes", "mean", "std", "network"}
# Prefixes of keys: DistributedDataParallel, torch.compile, Lightning modules, our Classifier.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
_ENCODERS = ("encoder_q.", "base_encoder.")  # MoCo v1 and v2; MoCo v3
_BLUR = ".blur_filter"
# The files of torchvision's DenseNets use names from before torch 0.4, such as `norm.1.`.
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
_SHOWN = 200  # characters of a list of keys in an error


def save_checkpoint(path: str | os.PathLike[str], model: Classifier) -> None:
    """Write the weights, the architecture and the normalisation of a model, atomically."""
    mean, std = model.channels
    values = {
        "arch": model.arch,
        "num_classes": model.num_classes,
        "mean": list(mean),
        "std": list(std),
        "trained_on": model.trained_on,
        "network": {name: v.detach().cpu() for name, v in model.network.state_dict().items()},
    }
    with atomic_open(path) as stream:
        torch.save(values, stream)


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

    The file comes from `torch.save`, or is `.safetensors` if safetensors is installed. The state
    dict is the whole file (ffcv-imagenet, torchvision), or the value of `state_dict` (Lightning,
    MoCo, timm), `model` (DeiT), or `network` in `state_dicts` (DP4TL). Prefixes that DDP,
    torch.compile and Lightning add to keys are removed, and the blurred convolutions of
    ffcv-imagenet are restored.

    The result is an encoder, with `num_classes` None, if `headless` is set, if the file has no
    weights for the head, or if it comes from MoCo, whose query encoder is loaded without its
    projection head.

    Args:
        path: the checkpoint.
        arch: architecture, see `build_model`. Other programs' files need it. A checkpoint of this
            project records `arch`, `mean` and `std`; if one is given, it must agree.
        num_classes: number of classes that the caller expects; None accepts any.
        mean: mean per channel of the training images, for pixels in [0, 1]; None takes the default
            of `arch`.
        std: standard deviation per channel, as for `mean`.
        headless: leave the head off.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint, or does not fit the arguments.
        ValueError: there is no architecture `arch`.
    """
    mean, std = (None if values is None else tuple(values) for values in (mean, std))
    try:
        values = _read(Path(path))
        if values.keys() >= _CHECKPOINT_KEYS:
            model = _build_recorded(values)
            if arch not in (None, model.arch):  # a model that the caller built has any name
                _check_same("arch", full_name(str(arch)), model.arch)
            _check_same("mean", mean, model.channels[0])
            _check_same("std", std, model.channels[1])
            model = replace_head(model, None) if headless else model
        else:
            model = _build_foreign(_find_state(values), arch, headless)
            channels = mean or model.channels[0], std or model.channels[1]
            model = Classifier(model.network, model.arch, model.num_classes, *channels)
        _check_same("num_classes", num_classes, model.num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load {str(path)!r}: {error}") from error
    return model


def load_model(model: ModelLike, **options: Any) -> tuple[Classifier, dict[str, str]]:
    """Return a classifier, and the provenance of its weights.

    The name of an architecture loads the pretrained weights of torchvision or timm. `options` are
    passed to `load_checkpoint`, and must be None or False for a model that is not a checkpoint.
    """
    if not isinstance(model, Classifier) and Path(model).exists():
        return load_checkpoint(model, **options), {"checkpoint_sha256": sha256_of_file(model)}
    if not (isinstance(model, Classifier) or is_architecture(str(model))):
        raise CheckpointError(
            f"{str(model)!r} is neither a checkpoint file nor an architecture of torchvision or "
            "timm:NAME."
        )
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"`{name}` is for a checkpoint file. Leave it out for this model.")
    return (model if isinstance(model, Classifier) else pretrained_model(str(model))), {}


def _build_recorded(values: Mapping[str, Any]) -> Classifier:
    arch, num_classes = values["arch"], values["num_classes"]
    try:
        network = build_model(arch, num_classes).network
        model = Classifier(network, arch, num_classes, tuple(values["mean"]), tuple(values["std"]))
        _load_weights(model, dict(values["network"]))
    except CheckpointError:
        raise
    except Exception as error:  # torch and torchvision raise several kinds for wrong values
        raise CheckpointError(
            f"it does not describe a {arch} with {num_classes} classes ({error}). It is damaged "
            "or was altered."
        ) from error
    model.trained_on = values.get("trained_on")
    return model


def _build_foreign(state: dict[str, Tensor], arch: str | None, headless: bool) -> Classifier:
    if arch is None:
        raise CheckpointError(
            "another program's checkpoint does not record its architecture. Pass `arch`, such as "
            "resnet18."
        )
    for prefix in _ENCODERS:
        if any(name.startswith(prefix) for name in state):
            state, headless = _below(state, prefix), True
    model = build_model(arch, None)
    head = f"{model.head_name}."
    outputs = [state[head + part] for part in ("weight", "bias") if head + part in state]
    if headless or not outputs:
        state = {name: value for name, value in state.items() if not name.startswith(head)}
    else:
        model = replace_head(model, (*outputs[0].shape, 1)[0])
    _load_weights(model, state)
    return model


def _load_weights(model: Classifier, state: dict[str, Tensor]) -> None:
    _restore_blurs(model.network, state)
    own = model.network.state_dict()
    unlike = {
        name: f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    }
    fitting = state | {name: own[name] for name in unlike}
    keys = model.network.load_state_dict(fitting, strict=False)
    faults = {
        "missing keys": keys.missing_keys,
        "unknown keys": keys.unexpected_keys,
        "wrong shapes": unlike.values(),
    }
    if any(faults.values()):
        listed = (f"{k}: {shorten(', '.join(v), _SHOWN)}." for k, v in faults.items() if v)
        raise CheckpointError(
            f"its weights do not fit {model.arch} with {model.num_classes} classes; "
            f"{' '.join(listed)} Pass the architecture that was trained."
        )


def _restore_blurs(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Wrap the convolutions that have a blur filter in the weights."""
    convolutions = {
        name: part for name, part in network.named_modules() if isinstance(part, nn.Conv2d)
    }
    for name in [key.removesuffix(_BLUR) for key in state if key.endswith(_BLUR)]:
        if name in convolutions:
            parent, _, attribute = name.rpartition(".")
            blurred = BlurPoolConv(convolutions[name])
            setattr(network.get_submodule(parent), attribute, blurred)


def _find_state(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return another program's state dict, with the key names of the network."""
    places = (values.get("state_dicts"), "network"), (values, "state_dict"), (values, "model")
    for holder, key in places:
        if isinstance(holder, Mapping) and isinstance(holder.get(key), Mapping):
            values = holder[key]
            break
    if not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(
            "it is not a state dict, and has none under state_dicts.network, state_dict or model. "
            f"Its keys: {shorten(', '.join(map(str, values)), _SHOWN) or 'none'}. Save only the "
            "state dict."
        )
    state = {str(name): value for name, value in values.items()}
    while prefixes := [prefix for prefix in _PREFIXES if len(_below(state, prefix)) == len(state)]:
        state = _below(state, prefixes[0])
    return {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _read(path: Path) -> dict[Any, Any]:
    is_safetensors = path.suffix == ".safetensors"
    if is_safetensors:
        with requires("safetensors", f"reading {str(path)!r}"):
            from safetensors.torch import load
    try:
        if is_safetensors:
            return dict(load(path.read_bytes()))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch does not verify checksums
                    raise zipfile.BadZipFile
        with torch.serialization.safe_globals(_numpy_globals()):
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises several kinds for damaged and foreign files
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened
        raise CheckpointError(
            "it is damaged, not a checkpoint, or holds objects other than tensors and numbers. "
            "Save the state dict alone."
        ) from error


def _numpy_globals() -> list[Any]:
    """List the globals that pickles of numpy numbers and arrays use. None runs code of the file.

    numpy 2 moved the functions to another module.
    """
    makers: list[Any] = [np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]]
    names = [
        (maker, f"numpy.{core}.multiarray.{maker.__name__}")
        for maker in makers
        for core in ("core", "_core")
    ]
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
    return [np.dtype, np.ndarray, *names, *{type(np.dtype(code)) for code in codes}]


def _check_same(name: str, expected: Any, found: Any) -> None:
    if expected is not None and expected != found:
        raise CheckpointError(
            f"its {name} is {found}, not {expected}. Leave `{name}` out, or pass another file."
        )
