"""Check the settings of a study's recipes before any work."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...configs.finetune import Config as FinetuneConfig
from ...configs.pretrain import Config as PretrainConfig
from ...configs.pretrain_moco import Config as MocoConfig
from ...configs.study import Study

_PLACES = ("train", "val", "test", "run", "selection", "checkpoint")
_OF_STUDY = {*_PLACES, "seed", "iterations", "mode", "num_workers", "overwrite", "resume"}
_RECIPES = {"pretrain": PretrainConfig, "pretrain-moco": MocoConfig}


def check_settings(study: Study) -> None:
    """Check the settings of every recipe.

    Raises:
        ValueError: a setting is unknown, has a wrong value, or is set by the study itself.
    """
    images, pretrain = study.images, study.pretrain
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
        common = {**images, **(pretrain if recipe is PretrainConfig else {})}
        common = {key: value for key, value in common.items() if key in known}
        own = {key: surrogate[key] for key in surrogate if key not in ("recipe", "samples")}
        _check(f"surrogates: {name}", own, recipe, common)
    for name, scoring in study.methods.items():
        _check(f"{name}: pretrain", scoring.pretrain, PretrainConfig, {**images, **pretrain})


def _check(entry: str, given: Mapping[str, Any], recipe: Any, common: Mapping[str, Any]) -> None:
    known = _names(recipe)
    for name in given:
        if name in _OF_STUDY:
            raise ValueError(f"`{entry}`: the study itself sets {name}. Leave it out.")
        if name not in known:
            close = get_close_matches(name, known - _OF_STUDY, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"`{entry}` has no setting {name}.{hint}")
        hint = get_type_hints(recipe)[name]
        kinds = (hint, *get_args(hint))
        takes_text = any(kind is str or get_origin(kind) is Literal for kind in kinds)
        if isinstance(given[name], str) and not takes_text:
            raise ValueError(f"`{entry}`: {name} is not a text; got {given[name]!r}.")
    places = {name: Path() for name in _PLACES if name in known}
    try:
        recipe(**{**common, **given}, **places)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{entry}`: {error}") from error


def _names(recipe: Any) -> set[str]:
    return {field.name for field in fields(recipe)}
