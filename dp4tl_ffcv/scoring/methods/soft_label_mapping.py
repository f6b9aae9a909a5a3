"""Soft label mapping: the surrogate's softmax outputs, summed over the target.

The surrogate's classes must be the source's classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..inputs import (
    FeaturesOrArray,
    check_soft_votes,
    features_or_none,
    predictions_of,
    target_facts,
)
from ..scores import Scores
from . import Method


def soft_label_mapping(target: FeaturesOrArray) -> Scores:
    """Score source classes by soft label mapping, `s[c] = sum_n softmax(h(t_n))_c`.

    Args:
        target: features folder of the target's training split (`dp4tl features`). In Python also
            Features, the surrogate's logits h `(n, C)`, or their soft votes `(C,)`.

    >>> soft_label_mapping([0.5, 2.5, 0.0]).ranking()
    array([1, 0, 2])
    """
    features = features_or_none(target)
    if features is not None and features.soft_votes is not None:
        given, votes = features.soft_votes, None
        about: Mapping[str, Any] = target_facts(features)
    else:
        found = predictions_of(target)
        given, votes, about = found.ids, found.soft_votes, found.facts
    if votes is None:
        votes = check_soft_votes("target", given)
    return Scores(scores=votes, method="soft_label_mapping", **about)


METHOD = Method(
    function=soft_label_mapping,
    flags={"target": Path},
    units=("class",),
    outputs="predictions",
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
