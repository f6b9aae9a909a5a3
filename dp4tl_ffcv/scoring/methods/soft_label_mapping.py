"""Soft label mapping: the surrogate's softmax outputs, summed over the target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..features.reductions import sum_soft_votes
from ..inputs import (
    FeaturesOrArray,
    as_array,
    check_logits,
    check_soft_votes,
    features_or_none,
    logits_of,
)
from ..scores import Scores
from . import Method


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Soft label mapping: the surrogate's softmax outputs, summed over the target.

    The surrogate's classes must be the source's classes.
    """

    target: Path
    """Features of the target's training split (`dp4tl features`)."""


def soft_label_mapping(
    target: FeaturesOrArray, *, provenance: Mapping[str, Any] | None = None
) -> Scores:
    """Score source classes by soft label mapping, `s[c] = sum_n softmax(h(t_n))_c`.

    Args:
        target: the target's Features or the path of their folder; or logits h `(n, C)` of the
            surrogate, or their soft votes `(C,)`.
        provenance: facts to record with the scores.

    >>> soft_label_mapping([0.5, 2.5, 0.0]).ranking()
    array([1, 0, 2])
    """
    if (features := features_or_none(target)) is not None:
        provenance = {"target": dict(features.provenance), **(provenance or {})}
        target = features.soft_votes
        target = logits_of("target", features) if target is None else target
    array = as_array(target)
    if array.ndim == 2:
        votes = sum_soft_votes(check_logits("target", array))
    else:
        votes = check_soft_votes("target", array)
    return Scores(scores=votes, method="soft_label_mapping", provenance=provenance or {})


METHOD = Method(
    function=soft_label_mapping,
    inputs=Inputs,
    units=("class",),
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
