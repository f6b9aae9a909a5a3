"""Label mapping (LM): number of target images that the surrogate predicts as each class.

The surrogate's classes must be the source's classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...validate import check_int
from ..inputs import FeaturesOrArray, as_array, check_soft_votes, predictions_of
from ..scores import Scores
from ..votes import label_information, own_votes
from . import Method


def label_mapping(
    target: FeaturesOrArray, num_classes: int | None = None, *, soft_votes: Any = None
) -> Scores:
    """Score source classes by label mapping, `s[c] = sum_n 1[argmax_k h(t_n)_k = c]`.

    The tie-break scores are the soft votes, `sum_n softmax(h(t_n))_c`. They rank the classes that
    were predicted for no image. (arXiv 2310.08782; the authors' code breaks ties arbitrarily.)

    The surrogate must have the source's classes, in the same order. `select` compares their names,
    if the checkpoint and the source's manifest have them. The scores are valid for every beton of
    that source, at any resolution.

    Warns if the votes say little about the target, see `Votes`.

    Args:
        target: features folder of the target's training split (`dp4tl features`). In Python also
            Features, the surrogate's logits h `(n, C)`, or predicted class ids `(n,)`.
        num_classes: number of classes C; needed with class ids unless `soft_votes` is given.
        soft_votes: tie-break scores `(C,)` to use with class ids. Without them, the lower id wins a
            tie.

    >>> label_mapping([2, 0, 2], num_classes=4).scores
    array([1., 0., 2., 0.])
    """
    from ...kernels import class_histogram

    found = predictions_of(target)
    votes = found.soft_votes
    if votes is not None and soft_votes is not None:
        raise ValueError("`soft_votes` are computed from logits. Pass one of the two.")
    if soft_votes is not None:
        votes = check_soft_votes("soft_votes", soft_votes)
    elif votes is None:
        if num_classes is None:
            raise ValueError("`num_classes` is needed with class ids. Pass it, or pass logits.")
        votes = np.zeros(check_int("num_classes", num_classes, 1))
    if num_classes not in (None, len(votes)):
        raise ValueError(f"`num_classes` is {num_classes}, but `target` has {len(votes)} classes.")
    counts = class_histogram(found.ids, len(votes))
    if not found.ids.size:
        raise ValueError("`target` holds no image. Check the target dataset.")
    return Scores.of_votes(
        counts,
        votes,
        own_votes=own_votes(found.ids, found.confidences, len(votes)),
        label_information=label_information(found.ids, found.labels),
        method="label_mapping",
        **found.facts,
    )


def _votes(target: FeaturesOrArray) -> NDArray[np.int64]:
    return as_array(predictions_of(target).ids)


METHOD = Method(
    function=label_mapping,
    flags={"target": Path},
    units=("class",),
    votes=_votes,
    outputs="predictions",
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
