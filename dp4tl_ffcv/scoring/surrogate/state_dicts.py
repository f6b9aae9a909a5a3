"""Find the weights of an architecture among the entries of any program's checkpoint."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from .models import BlurPoolConv, Classifier, build_model

# Components that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_QUERY_ENCODERS = {"encoder_q", "base_encoder"}  # MoCo v1 and v2; MoCo v3
_AVERAGE = re.compile(r"(^|_)ema(_|$)", re.IGNORECASE)  # model_ema, state_dict_ema, ema_model
_BLUR = ".blur_filter"
# The files of torchvision's DenseNets use names from before torch 0.4, such as `norm.1.`.
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
_COUNTER = "num_batches_tracked"  # torch fills it in for files from before torch 0.4.1
_SHOWN = 200  # characters of a list of keys in a message

Shapes = dict[str, tuple[tuple[int, ...], bool]]
"""Shapes of weights by name, and whether the weights are floating-point numbers."""
Path = tuple[str, ...]
"""Components of a key, after the names of the entries that hold it: `("model", "fc", "weight")`."""


class Entry(NamedTuple):
    """A tensor in a file."""

    path: Path
    holder: Path
    """Path of the mapping that holds it. Two mappings may have entries of the same path."""
    value: Tensor


@dataclass(frozen=True)
class Weights:
    """The entries of a checkpoint under one prefix, and how they fit a network."""

    prefix: Path
    state: dict[str, Tensor]
    """Tensors by the names of the network, without the head for an encoder."""
    size: int
    """Number of keys under the prefix, with the head."""
    num_classes: int | None
    faults: dict[str, list[str]]
    """Keys by what is wrong with them. Empty if the weights fit."""

    @property
    def name(self) -> str:
        """The prefix as it is written in keys."""
        return ".".join(self.prefix)

    def check(self, arch: str) -> None:
        """Raise `CheckpointError` if the weights do not fit."""
        if self.faults:
            where = f" under {self.name!r}" if self.prefix else ""
            head = (
                "without a head" if self.num_classes is None else f"with {self.num_classes} classes"
            )
            listed = (f"{kind}: {_listed(keys)}." for kind, keys in self.faults.items())
            raise CheckpointError(
                f"its weights{where} do not fit {arch} {head}; {' '.join(listed)} Pass the "
                "architecture that was trained."
            )


def find_weights(
    entries: Mapping[Any, Any], arch: str, *, headless: bool
) -> tuple[Weights, list[str]]:
    """Return the weights of `arch` among the entries of a file, and the prefixes left out.

    Components that wrappers add are ignored anywhere in a key. The largest group of keys under one
    prefix that has all weights of the network, except for the head, and no others is taken. Among
    groups of equal size, MoCo's query encoder is taken, or else a moving average.

    Raises:
        CheckpointError: no group fits, or several do.
        ValueError: there is no architecture `arch`.
    """
    tensors = _tensors(entries)
    if not tensors:
        raise CheckpointError(
            "it is not a state dict, and holds none. Its keys: "
            f"{_listed(key for key in entries if isinstance(key, str)) or 'none'}. Save only the "
            "state dict."
        )
    skeleton = _Skeleton(arch)
    counts = skeleton.count(tensor.path for tensor in tensors)
    groups = [
        skeleton.weights(tensors, prefix, headless)
        for prefix, count in counts.items()
        if count >= skeleton.num_required
    ]
    fitting = [group for group in groups if not group.faults]
    if not fitting:
        best = min(counts, key=lambda prefix: (-counts[prefix], len(prefix)), default=())
        skeleton.weights(tensors, best, headless).check(skeleton.arch)
    chosen = _choose(_largest(fitting))
    others = [group.name for group in fitting if group is not chosen]
    return chosen, list(dict.fromkeys([*others, *_beside(tensors, chosen.prefix)]))


def own_weights(state: Mapping[str, Tensor], arch: str, *, headless: bool) -> Weights:
    """Return the weights of this project's state dict of `arch`.

    Raises:
        CheckpointError: they do not fit.
    """
    weights = _Skeleton(arch).weights(_tensors(state), (), headless)
    weights.check(arch)
    return weights


def load_weights(arch: str, weights: Weights) -> Classifier:
    """Build the classifier, or the encoder, of fitting weights.

    Raises:
        CheckpointError: a weight is not finite.
    """
    model = build_model(arch, weights.num_classes)
    _restore_blurs(model.network, weights.state)
    model.network.load_state_dict(weights.state)
    for name, value in model.network.state_dict().items():
        if value.is_floating_point() and not _is_finite(value):
            raise CheckpointError(
                f"{name} holds NaN or infinite values: the training diverged. Pass an earlier "
                "checkpoint."
            )
    return model


class _Skeleton:
    """Names and shapes of the weights of an architecture."""

    def __init__(self, arch: str) -> None:
        model = _without_memory(arch)
        self.arch = model.arch
        self.head = f"{model.head_name}."
        shapes: Shapes = {
            name: (tuple(value.shape), value.is_floating_point())
            for name, value in model.network.state_dict().items()
        }
        self.body = {name: v for name, v in shapes.items() if not name.startswith(self.head)}
        self.outputs = {name: v for name, v in shapes.items() if name.startswith(self.head)}
        self.convolutions = {
            name: part
            for name, part in model.network.named_modules()
            if isinstance(part, nn.Conv2d)
        }
        required = {name for name in self.body if not name.endswith(_COUNTER)}
        self.num_required = len(required)
        blurred = {f"{n}.conv.{part}" for n in self.convolutions for part in ("weight", "bias")}
        self._names = required | blurred
        self._depth = 1 + max((len(name.split(".")) for name in self._names), default=0)

    def count(self, paths: Iterable[Path]) -> dict[Path, int]:
        """Count the weights of the body under each prefix that has any."""
        counts: dict[Path, int] = {}
        for path in paths:
            suffix: list[str] = []
            for start in reversed(range(len(path))):
                if path[start] in _WRAPPERS:
                    continue
                suffix.insert(0, path[start])
                if len(suffix) > self._depth:
                    break
                if _name(suffix) in self._names:
                    counts[path[:start]] = counts.get(path[:start], 0) + 1
        return counts

    def weights(self, tensors: Iterable[Entry], prefix: Path, headless: bool) -> Weights:
        """Return the tensors under a prefix, and compare them with the network."""
        headless = headless or not _QUERY_ENCODERS.isdisjoint(prefix)
        state: dict[str, Tensor] = {}
        written: dict[str, str] = {}
        faults: dict[str, list[str]] = {"keys for the same weight": []}
        for path, _, value in tensors:
            if path[: len(prefix)] == prefix:
                key, name = ".".join(path[len(prefix) :]), _name(path[len(prefix) :])
                if name in state:
                    faults["keys for the same weight"] += [written[name], key]
                state[name], written[name] = value, key
        outputs = [state[name] for name in self.outputs if name in state]
        shapes, size, num_classes = self._expected(state), len(state), None
        if headless or not outputs:
            state = {name: v for name, v in state.items() if not name.startswith(self.head)}
        else:
            num_classes = max((1, *outputs[0].shape[:1]))
            for name, (shape, is_float) in self.outputs.items():
                shapes[name] = (num_classes, *shape[1:]), is_float
        faults["missing keys"] = [
            name for name in shapes if name not in state and not name.endswith(_COUNTER)
        ]
        faults["unknown keys"] = [written[name] for name in state if name not in shapes]
        faults["wrong shapes"] = [
            f"{name} {tuple(state[name].shape)} instead of {shape}"
            for name, (shape, _) in shapes.items()
            if name in state and state[name].shape != shape
        ]
        types = (
            (name, _type_fault(state[name], is_float))
            for name, (_, is_float) in shapes.items()
            if name in state
        )
        faults["wrong types"] = [f"{name} {fault}" for name, fault in types if fault]
        return Weights(prefix, state, size, num_classes, {k: v for k, v in faults.items() if v})

    def _expected(self, state: Mapping[str, Tensor]) -> Shapes:
        """Return the weights of a body with the blur filters in `state`."""
        shapes = dict(self.body)
        for name, convolution in self.convolutions.items():
            if name + _BLUR in state:
                for part in ("weight", "bias"):
                    if f"{name}.{part}" in shapes:
                        shapes[f"{name}.conv.{part}"] = shapes.pop(f"{name}.{part}")
                shapes[name + _BLUR] = (convolution.in_channels, 1, 3, 3), True
        return shapes


def _without_memory(arch: str) -> Classifier:
    """Build a model on the meta device, so that no memory is taken before the weights fit."""
    try:
        with torch.device("meta"):
            return build_model(arch, 1)
    except (NotImplementedError, RuntimeError):  # some architectures compute while they are built
        return build_model(arch, 1)


def _tensors(entries: Mapping[Any, Any]) -> list[Entry]:
    """Return the tensors of nested mappings with text as keys."""
    found: list[Entry] = []
    seen: set[int] = set()
    waiting: list[tuple[Path, Mapping[Any, Any]]] = [((), entries)]
    while waiting:
        prefix, mapping = waiting.pop()
        if id(mapping) in seen:  # the pickle names one mapping several times
            continue
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Tensor | Mapping):
                path = (*prefix, *key.split("."))
                if isinstance(value, Mapping):
                    waiting.append((path, value))
                else:
                    found.append(Entry(path, prefix, value))
    return found


def _name(path: Iterable[str]) -> str:
    name = ".".join(part for part in path if part not in _WRAPPERS)
    return _OLD_DENSENET.sub(r"\1\2", name)


def _type_fault(value: Tensor, is_float: bool) -> str | None:
    """Return the type of a tensor that cannot be copied into a weight, or None."""
    kinds = str(value.dtype), str(value.layout), value.device.type
    is_number = value.is_floating_point() if is_float else not value.is_quantized
    if kinds[1:] != ("torch.strided", "cpu") or not is_number:
        return ", ".join(kind.removeprefix("torch.") for kind in kinds)
    # Such a tensor takes memory only when it is copied.
    is_repeated = value.numel() * value.element_size() > value.untyped_storage().nbytes()
    return "repeats its numbers" if is_repeated else None


def _largest(groups: list[Weights]) -> list[Weights]:
    """Return the groups with the most keys, the shortest prefix first, without equal copies."""
    size = max(group.size for group in groups)
    distinct: list[Weights] = []
    for group in sorted(groups, key=lambda group: (len(group.prefix), group.prefix)):
        if group.size == size and not any(_equal(group, other) for other in distinct):
            distinct.append(group)
    return distinct


def _equal(one: Weights, other: Weights) -> bool:
    return one.state.keys() == other.state.keys() and all(
        value is other.state[name] or torch.equal(value, other.state[name])
        for name, value in one.state.items()
    )


def _choose(groups: list[Weights]) -> Weights:
    if len(groups) == 1:
        return groups[0]
    for is_preferred in (_QUERY_ENCODERS.__contains__, _AVERAGE.search):
        preferred = [group for group in groups if any(map(is_preferred, group.prefix))]
        if len(preferred) == 1:
            return preferred[0]
    raise CheckpointError(
        f"it holds several networks that fit: {_listed(group.name for group in groups)}. Save one "
        "of them as a file of its own."
    )


def _beside(tensors: list[Entry], prefix: Path) -> Iterator[str]:
    """Yield what a state dict holds beside the keys under `prefix`, without inner keys."""
    used = {holder for path, holder, _ in tensors if path[: len(prefix)] == prefix}
    for path, holder, _ in tensors:
        if holder in used and path[: len(prefix)] != prefix:
            yield ".".join(path[: len(prefix)])


def _listed(names: Iterable[str]) -> str:
    return shorten(", ".join(names), _SHOWN)


def _is_finite(value: Tensor) -> bool:
    extremes = value.aminmax() if value.numel() else ()  # NaN if any value is
    return all(math.isfinite(extreme) for extreme in extremes)


def _restore_blurs(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Wrap the convolutions that have a blur filter in the weights."""
    for name in [key.removesuffix(_BLUR) for key in state if key.endswith(_BLUR)]:
        parent, _, attribute = name.rpartition(".")
        blurred = BlurPoolConv(network.get_submodule(name))  # type: ignore[arg-type]  # a Conv2d
        setattr(network.get_submodule(parent), attribute, blurred)
