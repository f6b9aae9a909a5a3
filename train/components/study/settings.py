"""Check the settings of a study's recipes before any work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import torchvision

from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import check_choice

from ...configs.finetune import Config as FinetuneConfig
from ...configs.pretrain import Config as PretrainConfig
from ...configs.pretrain_moco import Config as MocoConfig
from ...configs.study import Study

_PLACES = ("train", "val", "test", "run", "selection", "checkpoint")
_OF_STUDY = {*_PLACES, "data", "seed", "iterations", "mode", "num_workers", "overwrite", "resume"}
_RECIPES = {"pretrain": PretrainConfig, "pretrain-moco": MocoConfig}


def check_settings(study: Study) -> None:
    """Check the settings of every recipe, and the writers of `data`.

    Raises:
        ValueError: a setting is unknown, has a wrong value, or is set by the study itself; or there
            is no such writer.
    """
    for folder, arguments in study.data.items():
        writer = arguments[0].replace("_", "-") if arguments else ""
        check_choice(f"data: {folder}: writer", writer, _writers())
    images, pretrain = study.images, study.pretrain
    pretraining = {**images, **pretrain}
    probe = {**images, **study.finetune.get("linear_probe", {})}
    _check("images", images, PretrainConfig, {})
    _check("images", images, FinetuneConfig, {})
    _check("pretrain", pretrain, PretrainConfig, images)
    for mode, given in study.finetune.items():
        _check(f"finetune: {mode}", given, FinetuneConfig, images)
    for name, surrogate in study.surrogates.items():
        if isinstance(surrogate, str):
            continue
        recipe = _RECIPES[surrogate.get("recipe", "pretrain")]
        known = _names(recipe)
        common = pretraining if recipe is PretrainConfig else images
        common = {key: value for key, value in common.items() if key in known}
        own = {key: surrogate[key] for key in surrogate if key not in ("recipe", "samples")}
        _check(f"surrogates: {name}", own, recipe, common)
    for name, scoring in study.methods.items():
        _check(f"{name}: pretrain", scoring.pretrain, PretrainConfig, pretraining)
        entry, given = f"{name}: influence", scoring.options.get("influence", {})
        _check(f"{entry}: pretrain", given.get("pretrain", {}), PretrainConfig, pretraining)
        _check(f"{entry}: probe", given.get("probe", {}), FinetuneConfig, probe)


def _check(entry: str, given: Mapping[str, Any], recipe: Any, common: Mapping[str, Any]) -> None:
    known = _names(recipe)
    for name in given:
        if name in _OF_STUDY:
            raise ValueError(f"`{entry}`: the study itself sets {name}. Leave it out.")
        if name not in known:
            close = get_close_matches(name, known - _OF_STUDY, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"`{entry}` has no setting {name}.{hint}")
        check_value(entry, name, given[name], get_type_hints(recipe)[name])
    settings = {**common, **given}
    try:
        if "arch" in settings:
            _check_arch(settings["arch"])
        recipe(**settings, **{name: Path() for name in _PLACES if name in known})
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{entry}`: {error}") from error


def check_weights(entry: str, given: str, path: Path) -> None:
    """Check the name of pretrained weights.

    Args:
        entry: entry of the study file.
        given: name of the weights, which may be meant as a path.
        path: the file that `given` would be, which does not exist.

    Raises:
        ValueError: there is no such model, or timm, which would have it, is not installed.
    """
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    if given.startswith("timm:"):
        try:
            _check_arch(given)
        except ValueError as error:
            raise ValueError(f"`{entry}`: {error}") from error
    elif given.removeprefix("torchvision:") not in (*of_torchvision, "efficientnet-lite0"):
        raise ValueError(
            f"`{entry}`: there is neither a file {str(path)!r} nor a model {given!r}. Give the path"
            " of a checkpoint, one of torchvision.models.list_models(), timm:NAME or "
            "efficientnet-lite0."
        )


def check_value(entry: str, name: str, value: Any, hint: Any) -> None:
    """Check that a value of a study file has the type of a setting or option.

    Raises:
        ValueError: it has not.
    """
    if get_origin(hint) is Literal:
        check_choice(f"{entry}: {name}", value, get_args(hint))
    elif not _fits(value, hint):
        advice = " Write true or false." if hint is bool else ""
        raise ValueError(f"`{entry}`: {name} cannot be {json.dumps(value)}.{advice}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind in (tuple, Sequence):
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    return type(value) in {float: (int, float), Path: (str,)}.get(hint, (hint,))


@cache
def _writers() -> tuple[str, ...]:
    modules = iter_modules(import_module("dp4tl_ffcv.writers").__path__)
    return tuple(each.name.replace("_", "-") for each in modules if not each.ispkg)


@cache
def _check_arch(arch: str) -> None:
    with torch.device("meta"):  # takes no memory
        build_model(arch, 2)


def _names(recipe: Any) -> set[str]:
    return {field.name for field in fields(recipe)}
