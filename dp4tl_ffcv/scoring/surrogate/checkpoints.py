"""Surrogates on disk: what this project writes, and the weights that other programs write.

Nothing but tensors, plain containers and numpy's numbers is ever read from a file.
"""

import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...artifacts import atomic_open
from ...errors import CheckpointError
from .models import BlurPoolConv, Classifier, build_model, full_name, replace_head

_CHECKPOINT_KEYS = {"arch", "num_classes", "mean", "std", "network"}
# Where other programs keep the state dict: DP4TL; Lightning, MoCo, timm; DeiT, torchvision.
_PLACES = (("state_dicts", "network"), ("state_dict",), ("model",))
# What wraps a whole network: DistributedDataParallel; torch.compile; a Lightning module's usual
# attribute; this project's Classifier.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
_ENCODERS = ("encoder_q.", "base_encoder.")  # MoCo v1 and v2; MoCo v3
_BLUR = ".blur_filter"
# torchvision's published DenseNets have names of before torch 0.4.
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
_SHOWN = 3  # keys of each kind in an error


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


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    headless: bool = False,
) -> Classifier:
    """Read a surrogate: what `save_checkpoint` wrote, or another program's state dict.

    Of other programs it reads a state dict, by itself (ffcv-imagenet, torchvision) or under
    `state_dicts` and `network` (DP4TL), `state_dict` (Lightning, MoCo, timm) or `model`, in files
    of torch.save or, where safetensors is installed, `.safetensors`. The prefixes of DDP,
    torch.compile and Lightning are taken off, and ffcv-imagenet's blurred convolutions put in.
    A file that holds other objects beside is refused, since nothing is unpickled.

    The result is an encoder, whose `num_classes` is None, if `headless`, if the file has no weights
    for the head, as those of self-supervised training, or if it is one of MoCo, whose query encoder
    is taken and its projection left.

    Args:
        path: the checkpoint.
        arch: the architecture, as `build_model` names it. This project's checkpoints record it,
            and one of another is refused; another program's need it.
        num_classes: outputs that the caller expects; None takes those that are there.
        mean: per channel, for pixels in [0, 1], as in the training of another program's; None takes
            the usual ones of `arch`. This project's checkpoints record it, as `arch`.
        std: likewise.
        headless: leave the head off.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no checkpoint, lacks what the arguments must give, is another
            than they say, or its weights do not fit the architecture.
        ValueError: there is no architecture `arch`.
    """
    values = _read(path)
    if values.keys() >= _CHECKPOINT_KEYS:
        model = _recorded(path, values)
        if arch != model.arch:  # a model that the caller built has any name
            _check_same(path, "arch", None if arch is None else full_name(arch), model.arch)
        _check_same(path, "mean", None if mean is None else tuple(mean), model.channels[0])
        _check_same(path, "std", None if std is None else tuple(std), model.channels[1])
        model = replace_head(model, None) if headless else model
    else:
        model = _foreign(path, _find_state(path, values), arch, headless)
        channels = (
            model.channels[0] if mean is None else tuple(mean),
            model.channels[1] if std is None else tuple(std),
        )
        model = Classifier(model.network, model.arch, model.num_classes, *channels)
    _check_same(path, "num_classes", num_classes, model.num_classes)
    return model


def _recorded(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Classifier:
    """Build the model that a checkpoint of this project describes."""
    try:
        model = build_model(values["arch"], values["num_classes"])
        channels = tuple(values["mean"]), tuple(values["std"])
        model = Classifier(model.network, values["arch"], values["num_classes"], *channels)
        _load(path, model, dict(values["network"]))
    except CheckpointError:
        raise
    except Exception as error:  # torch and torchvision raise several kinds for wrong values
        raise CheckpointError(
            f"`path` must hold the weights of {values['arch']} with {values['num_classes']} "
            f"classes; got others in {str(path)!r}. It is damaged, was altered, or: {error}"
        ) from error
    model.trained_on = values.get("trained_on")
    return model


def _foreign(
    path: str | os.PathLike[str], state: dict[str, Tensor], arch: str | None, headless: bool
) -> Classifier:
    """Build the model whose weights another program wrote."""
    if arch is None:
        raise CheckpointError(
            f"`arch` must name the architecture of another program's checkpoint; got none for "
            f"{str(path)!r}. Pass, for example, arch='resnet18'."
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
    _load(path, model, state)
    return model


def _load(path: str | os.PathLike[str], model: Classifier, state: dict[str, Tensor]) -> None:
    """Put weights into the model; they must be those of its network, no more and no fewer."""
    network = model.network
    _put_blurs(network, state)
    own = network.state_dict()
    lacking = [
        name
        for name in own
        if name not in state and not name.endswith(".num_batches_tracked")  # torch 0.4 added it
    ]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    unknown = [name for name in state if name not in own]
    kinds = {"lacks": lacking, "has besides": unknown, "has other shapes:": shapes}
    faults = [f"{kind} {_first_of(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise CheckpointError(
            f"`path` must hold the weights of {model.arch} with {model.num_classes} classes; got "
            f"{str(path)!r}, which {'; '.join(faults)}. Name the architecture of the training; a "
            "checkpoint of this project that does not fit was altered."
        )
    network.load_state_dict(state)


def _put_blurs(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Wrap the convolutions for which the weights have a blur."""
    convolutions = {
        name: part for name, part in network.named_modules() if isinstance(part, nn.Conv2d)
    }
    for name in [key.removesuffix(_BLUR) for key in state if key.endswith(_BLUR)]:
        if name in convolutions:
            parent, _, attribute = name.rpartition(".")
            blurred = BlurPoolConv(convolutions[name])
            setattr(network.get_submodule(parent), attribute, blurred)


def _find_state(path: str | os.PathLike[str], values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return another program's state dict with the network's own names."""
    for place in _PLACES:
        found: Any = values
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            values = found
            break
    if not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(
            f"`path` must be a checkpoint of this project or hold a state dict, by itself or under "
            f"one of {['.'.join(place) for place in _PLACES]}; got {str(path)!r} with "
            f"{_first_of([str(key) for key in values]) or 'nothing'}. Save the state dict alone."
        )
    state = {str(name): value for name, value in values.items()}
    while prefixes := [prefix for prefix in _PREFIXES if len(_below(state, prefix)) == len(state)]:
        state = _below(state, prefixes[0])
    return {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _read(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Return what a file holds, of tensors, plain containers and numpy's numbers."""
    try:
        if Path(path).suffix == ".safetensors":
            return _read_safetensors(path)
        damaged = None
        if zipfile.is_zipfile(path):  # as torch writes since 1.6
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # the checksums, which torch passes over
        with torch.serialization.safe_globals(_numpy_parts()):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged or foreign file
        if isinstance(error, CheckpointError):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened; an OSError without a name comes from reading it
        raise _no_checkpoint(path) from error
    if damaged or not isinstance(values, dict):
        raise _no_checkpoint(path)
    return values


def _read_safetensors(path: str | os.PathLike[str]) -> dict[Any, Any]:
    try:
        from safetensors.torch import load
    except ImportError:
        raise CheckpointError(
            f"`path` must be a file of torch.save where safetensors is not installed; got "
            f"{str(path)!r}. Install it with `pip install safetensors`."
        ) from None
    return dict(load(Path(path).read_bytes()))


def _numpy_parts() -> list[Any]:
    """Name what makes up numpy's numbers and arrays of them in a pickle, as metrics come.

    None of it runs code from the file. The functions are in another module since numpy 2.
    """
    makers: list[Any] = [np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]]
    names = [
        (maker, f"numpy.{core}.multiarray.{maker.__name__}")
        for maker in makers
        for core in ("core", "_core")
    ]
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
    return [np.dtype, np.ndarray, *names, *{type(np.dtype(code)) for code in codes}]


def _check_same(path: str | os.PathLike[str], name: str, expected: Any, found: Any) -> None:
    if expected is not None and expected != found:
        raise CheckpointError(
            f"`path` must be a checkpoint of {name} {expected}; got one of {found}, "
            f"{str(path)!r}. Leave `{name}` out to take its own, or pass another checkpoint."
        )


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _no_checkpoint(path: str | os.PathLike[str]) -> CheckpointError:
    return CheckpointError(
        f"`path` must be a checkpoint of tensors and numbers alone; got {str(path)!r}. It is "
        "damaged, no checkpoint, or holds other objects, which are never unpickled: save its state "
        "dict alone."
    )
