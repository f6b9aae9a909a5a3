"""Label mapping (LM): how many target images the surrogate predicts as each source class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...validate import check_int
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
    """Label mapping (LM): target images that the surrogate predicts as each class.

    The surrogate's classes must be the source's classes.
    """

    target: Path
    """Features of the target's training split (`dp4tl features`)."""


def label_mapping(
    target: FeaturesOrArray,
    num_classes: int | None = None,
    *,
    soft_votes: Any = None,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score source classes by label mapping, `s[c] = sum_n 1[argmax_k h(t_n)_k = c]`.

    The tie-break scores are the soft votes, `sum_n softmax(h(t_n))_c`: they rank classes that no
    image was predicted as by how much evidence there is. (arXiv 2310.08782; the authors' code
    breaks ties arbitrarily.)

    The surrogate's classes, in its order, must be the source's classes. Any beton of that source
    may be selected from, at another resolution too.

    Args:
        target: the target's Features or the path of their folder; or logits h `(n, C)` of the
            surrogate, or predicted class ids `(n,)`.
        num_classes: number of classes C; needed with class ids unless `soft_votes` is given.
        soft_votes: `(C,)`, the tie-break scores to use with class ids. Without them, ties are
            broken by the lower id.
        provenance: facts to record with the scores.

    >>> label_mapping([2, 0, 2], num_classes=4).scores
    array([1., 0., 2., 0.])
    """
    from ...kernels import class_histogram

    if (features := features_or_none(target)) is not None:
        provenance = {"target": dict(features.provenance), **(provenance or {})}
        if features.predictions is not None and features.soft_votes is not None:
            target, soft_votes = features.predictions, features.soft_votes
        else:
            target = logits_of("target", features)
    ids = as_array(target)
    if ids.ndim == 2:
        if soft_votes is not None:
            raise ValueError("`soft_votes` are computed from logits. Pass one of the two.")
        votes = sum_soft_votes(check_logits("target", ids))
        ids = ids.argmax(axis=1)  # the first of equal maxima on every machine
    elif soft_votes is not None:
        votes = check_soft_votes("soft_votes", soft_votes)
    elif num_classes is not None:
        votes = np.zeros(check_int("num_classes", num_classes, 1))
    else:
        raise ValueError(
            f"`num_classes` is needed with class ids; got ids of shape {ids.shape} and None."
        )
    if num_classes not in (None, len(votes)):
        raise ValueError(f"`num_classes` is {num_classes}, but `target` has {len(votes)} classes.")
    counts = class_histogram(ids, len(votes))
    if not ids.size:
        raise ValueError("`target` holds no image. Check the target dataset.")
    return Scores(
        scores=counts.astype(np.float64),
        tie_break=votes,
        method="label_mapping",
        provenance=provenance or {},
    )


METHOD = Method(
    function=label_mapping,
    inputs=Inputs,
    units=("class",),
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
