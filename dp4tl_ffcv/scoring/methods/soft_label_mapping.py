"""Soft label mapping: the surrogate's softmax outputs, summed over the target.

The surrogate's classes must be the source's classes.
"""

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


def soft_label_mapping(target: FeaturesOrArray) -> Scores:
    """Score source classes by soft label mapping, `s[c] = sum_n softmax(h(t_n))_c`.

    Args:
        target: features folder of the target's training split (`dp4tl features`). In Python also
            Features, the surrogate's logits h `(n, C)`, or their soft votes `(C,)`.

    >>> soft_label_mapping([0.5, 2.5, 0.0]).ranking()
    array([1, 0, 2])
    """
    about: dict[str, Any] = {}
    if (features := features_or_none(target)) is not None:
        about["target"] = dict(features.provenance)
        target = features.soft_votes
        target = logits_of("target", features) if target is None else target
    array = as_array(target)
    if array.ndim == 2:
        votes = sum_soft_votes(check_logits("target", array))
    else:
        votes = check_soft_votes("target", array)
    return Scores(scores=votes, method="soft_label_mapping", provenance=about)


METHOD = Method(
    function=soft_label_mapping,
    flags={"target": Path},
    units=("class",),
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
