"""Moderate: keep samples (or classes) at a typical distance from their centre.

To keep the same fraction of each class, as DP4TL does, use `dp4tl select --balanced`.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...validate import check_choice
from ..features.reductions import class_means
from ..inputs import FeaturesOrArray, distances, labelled, num_classes_of, whole_source
from ..scores import Scores, Unit
from . import Method

Median = Literal["class", "all"]


def moderate(
    source: FeaturesOrArray,
    labels: Any = None,
    num_classes: int | None = None,
    *,
    unit: Unit = "sample",
    median: Median = "class",
) -> Scores:
    """Score samples or classes by how close their distance to the centre is to the median.

    Samples: `s[n] = -|d_n - median_{m: y_m = y_n} d_m|` with `d_n = ||g(x_n) - mu[y_n]||_2` and mu
    the class means; `median="all"` takes the median over all samples. (Moderate coreset, Xia et al.
    2023, openreview 7D5EECbOaf9.)

    Classes: `s[c] = -|D_c - median(D)|` with `D_c = ||mu[c] - mean_k mu[k]||_2`, over classes that
    have samples. Classes without samples come last.

    Published code differs: it keeps the middle ranks of the distances instead of the distances
    closest to the median, and its class centre is the median of each feature. DP4TL's
    `data_wise_moderate` works within each class, like `select(..., balanced=True)` with these
    scores. Xia et al. (tmllab/2023_ICLR_Moderate-DS) work over all samples, like `median="all"`.

    Args:
        source: features folder of the source (`dp4tl features`). In Python also Features, or an
            array g `(N, D)`; memory maps are read block by block, twice.
        labels: class ids `(N,)`; with an array only.
        num_classes: number of classes C; with an array only.
        unit: score samples or classes.
        median: for samples, the median distance in the sample's class, or over all samples.

    >>> moderate([[0.0], [4.0], [17.0], [10.0], [9.0]], [0, 0, 1, 1, 1], 2).ranking()
    array([0, 1, 4, 3, 2])
    """
    check_choice("unit", unit, ("class", "sample"))
    check_choice("median", median, ("class", "all"))
    if unit == "class" and median != "class":
        raise ValueError("`median` has no effect on classes. Leave it out, or score samples.")
    about: dict[str, Any] = {}
    if labels is None:
        features, about = whole_source(source)
        if features is None:
            raise ValueError("`labels` and `num_classes` are needed with an array of features.")
        source, labels, num_classes = features.features, features.labels, num_classes_of(features)
    elif num_classes is None:
        raise ValueError("`num_classes` is needed with `labels`; got None.")
    values, ids = labelled("source", source, labels, num_classes)
    means = class_means(values, ids, num_classes)
    if unit == "class":
        scores, tie_break = _of_classes(means)
    else:
        about["median"] = median
        own = distances(values, means, ids)
        groups = ids if median == "class" else np.zeros_like(ids)
        scores = -np.abs(own - _medians(own, groups, num_classes)[groups])
        tie_break = np.zeros_like(scores)
    return Scores(
        scores=scores,
        tie_break=tie_break,
        method="moderate",
        unit=unit,
        provenance=about,
    )


def _of_classes(means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scores and tie-break scores that rank classes without samples last."""
    present = ~np.isnan(means).any(axis=1)
    middle = means[present].mean(axis=0, keepdims=True)
    own = distances(means[present], middle, np.zeros(present.sum(), dtype=np.int64))
    near = -np.abs(own - np.median(own))
    scores = np.full(len(means), near.min())
    scores[present] = near
    return scores, np.where(present, 0.0, -1.0)


def _medians(
    values: NDArray[np.float64], groups: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    ordered = values[np.lexsort((values, groups))]
    sizes = np.bincount(groups, minlength=count)
    present = np.flatnonzero(sizes)
    firsts, sizes = (np.cumsum(sizes) - sizes)[present], sizes[present]
    medians = np.zeros(count, dtype=np.float64)
    medians[present] = (ordered[firsts + (sizes - 1) // 2] + ordered[firsts + sizes // 2]) / 2
    return medians


METHOD = Method(
    function=moderate,
    flags={"source": Path, "unit": Unit, "median": Median},
    units=("sample", "class"),
    reference="[Xia et al. 2023](https://openreview.net/forum?id=7D5EECbOaf9)",
)
