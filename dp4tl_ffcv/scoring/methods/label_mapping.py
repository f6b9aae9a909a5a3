"""Label mapping (LM): number of target images that the surrogate predicts as each class.

The surrogate's classes must be the source's classes.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...validate import check_int
from ..inputs import FeaturesOrArray, check_soft_votes, votes_of
from ..scores import Scores
from . import Method

# Agreement of predictions with softmax outputs, summed over images: 0.01 to 0.15 for untrained
# ResNet-8s and ResNet-18s with 50 to 1,000 classes, 0.19 after one epoch, 0.8 once trained.
# Untrained ResNet-50s predict one class for all images.
_AGREEMENT = 0.17
_FEWEST = 50  # images, below which one class for all may be chance


def label_mapping(
    target: FeaturesOrArray, num_classes: int | None = None, *, soft_votes: Any = None
) -> Scores:
    """Score source classes by label mapping, `s[c] = sum_n 1[argmax_k h(t_n)_k = c]`.

    The tie-break scores are the soft votes, `sum_n softmax(h(t_n))_c`. They rank the classes that
    were predicted for no image. (arXiv 2310.08782; the authors' code breaks ties arbitrarily.)

    The surrogate must have the source's classes, in the same order. `select` compares their names,
    if the checkpoint and the source's manifest have them. The scores are valid for every beton of
    that source, at any resolution.

    Warns if the votes look like those of an untrained surrogate.

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

    ids, votes, about = votes_of(target)
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
    counts = class_histogram(ids, len(votes))
    if not ids.size:
        raise ValueError("`target` holds no image. Check the target dataset.")
    if soft_votes is None and votes.any():
        _warn_of_untrained(counts, votes)
    return Scores(
        scores=counts.astype(np.float64), tie_break=votes, method="label_mapping", **about
    )


def _warn_of_untrained(counts: NDArray[np.int64], votes: NDArray[np.float64]) -> None:
    """Warn if predictions are concentrated as those of an untrained surrogate are."""
    images, most = int(counts.sum()), int(counts.max())
    agreement = float(np.minimum(counts, votes).sum() / images)
    if images >= _FEWEST and len(counts) > 1 and (agreement < _AGREEMENT or most == images):
        warnings.warn(
            f"the surrogate may be untrained, or unfit for the target: it predicts "
            f"{most / images:.0%} of the {images} images as class {counts.argmax()}, and "
            f"its predictions and softmax outputs agree on {agreement:.0%} of the votes. Check its "
            "checkpoint.",
            stacklevel=4,
        )


METHOD = Method(
    function=label_mapping,
    flags={"target": Path},
    units=("class",),
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
