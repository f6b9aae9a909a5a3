"""Check the methods of a study and their options before any work."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, get_type_hints

from dp4tl_ffcv import extract_features
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import check_choice, check_int

from ...configs.config_file import check_forms
from ...configs.pretrain import Config as PretrainConfig
from ...configs.study import AUTO, Study
from .settings import check_value

# Arguments of methods that a study makes, and those that it sets unless they are given.
_MADE = {"target", "source", "models", "dynamics", "outcomes", "included", "beton"}
_SET = {"difficulty", "seed", "resolution", "crop_ratio"}
# Arguments of feature extraction that a method cannot set.
_NOT_OPTIONS = {
    "model", "beton", "out", "indices", "restart", "num_workers", "timeout", "device",
}  # fmt: skip
# Options that are not passed to a method as they are: their types, and an example of each.
_FORMS: dict[str, tuple[Any, str]] = {
    "clusters": (int, "clusters: 1000"),
    "difficulty": (str | dict[str, Any], "difficulty: {method: aum, prefer: low}"),
    "influence": (dict[str, Any], "influence: {runs: 40}"),
}
_INFLUENCE: dict[str, tuple[Any, str]] = {
    "runs": (int, "runs: 40"),
    "pretrain": (dict[str, Any], "pretrain: {epochs: 4}"),
    "probe": (dict[str, Any], "probe: {epochs: 20}"),
}


def check_methods(study: Study) -> None:
    """Check the methods and their options.

    Raises:
        ValueError: a method is unknown, needs more than a study has, or cannot choose the fraction;
            or an option is unknown or has a wrong value.
    """
    for name, scoring in study.methods.items():
        _check_options(name, scoring.method, scoring.options)
        votes = methods.get(scoring.method).votes
        if not votes and any(AUTO in each for each in scoring.keeps.values()):
            raise ValueError(
                f"keep `auto` decides by votes of the target's images, which the method {name} "
                "does not give. Give fractions as its `keeps`."
            )


def difficulty_of(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the method that scores the difficulty of samples, and its options."""
    entry = options.get("difficulty", {})
    chosen = {"method": entry} if isinstance(entry, str) else dict(entry)
    return str(chosen.pop("method", "el2n")), chosen


def check_outputs(
    name: str, method: str, extraction: Mapping[str, Any], *, classifier: bool
) -> None:
    """Check that a surrogate's features have the outputs that a method reads.

    Args:
        name: name of the method in the study.
        method: scoring method.
        extraction: its options of feature extraction.
        classifier: whether the surrogate has a classifier.

    Raises:
        ValueError: they have not.
    """
    outputs = methods.get(method).outputs
    if outputs is None:
        return
    if not classifier:
        raise ValueError(
            f"the method {name} reads {outputs} of a classifier, which its surrogate does not have:"
            " `pretrain-moco` trains without labels. Name another `surrogate`."
        )
    needless = {"headless": True, **({"logits": False} if outputs == "logits" else {})}
    for option, value in needless.items():
        if extraction.get(option) is value:
            raise ValueError(
                f"the method {name} reads {outputs}, which features with `{option}: "
                f"{str(value).lower()}` lack. Leave out `{option}`."
            )


def check_dynamics(name: str, options: Mapping[str, Any], surrogate: Mapping[str, Any]) -> None:
    """Check that a surrogate records the dynamics that a method scores by.

    Args:
        name: name of the method in the study.
        options: its options.
        surrogate: settings of its surrogate.

    Raises:
        ValueError: it records none, or too few epochs for the method's `window`.
    """
    if not surrogate.get("record_dynamics"):
        raise ValueError(
            f"the method {name} scores samples by training dynamics, which its surrogate does not "
            "record. Set `record_dynamics: true` in the surrogate's settings."
        )
    window, epochs = options.get("window") or 0, surrogate.get("epochs", PretrainConfig.epochs)
    if window > epochs:
        raise ValueError(
            f"`{name}`: window is {window}, but its surrogate trains for {epochs} epochs. Give a "
            "smaller window."
        )


def is_extraction(option: str, flags: set[str]) -> bool:
    """Return whether an option of a method is one of feature extraction."""
    return option not in flags and option in signature(extract_features).parameters


def _check_difficulty(name: str, method_name: str, options: Mapping[str, Any]) -> None:
    _check_options(name, method_name, options)
    method = methods.get(method_name)
    default = signature(method.function).parameters.get("unit")
    unit = options.get("unit", default.default if default else method.units[0])
    if unit != "sample":
        raise ValueError(
            f"`{name}` must be a method that scores samples; {method_name} scores classes."
        )


def _check_options(name: str, method_name: str, options: Mapping[str, Any]) -> None:
    method = methods.get(method_name)
    if missing := {*method.required} - _MADE - _SET - {*options}:
        raise ValueError(
            f"the method {name} needs {', '.join(sorted(missing))}, as in "
            f"`{name}: {{{min(missing)}: ...}}`."
        )
    hints = {**get_type_hints(extract_features), **method.flags}
    extraction = {*signature(extract_features).parameters} - _NOT_OPTIONS
    known = ({*method.flags} | extraction) - _MADE
    if "outcomes" in method.flags:
        known.add("influence")
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"the method {name} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))}."
        )
    check_forms(f"methods: {name}", options, _FORMS, optional=_FORMS)
    check_int(f"{name}: clusters", options.get("clusters", 1), 1)
    for option in options.keys() - _FORMS.keys():
        check_value(name, option, options[option], hints[option])
    if "difficulty" in method.flags:
        _check_difficulty(f"{name}: difficulty", *difficulty_of(options))
    given = options.get("influence", {})
    for entry in given:
        check_choice(f"{name}: influence", entry, _INFLUENCE)
    check_forms(f"{name}: influence", given, _INFLUENCE, optional=_INFLUENCE)
    check_int(f"{name}: influence: runs", given.get("runs", 2), 2)
