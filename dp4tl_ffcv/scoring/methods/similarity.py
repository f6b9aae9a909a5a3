"""Similarity: cosine of source samples or classes with the nearest target images."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...validate import check_choice, check_int
from ..cosines import blocks_of, for_each, unit_rows
from ..features.reductions import class_means
from ..inputs import (
    FeaturesOrArray,
    as_array,
    in_order_of_ids,
    labelled,
    num_classes_of,
    target_and_source,
)
from ..scores import Scores, Unit
from . import Method

_ABSENT = -2.0  # below every cosine


def similarity(
    target: FeaturesOrArray,
    source: FeaturesOrArray,
    labels: Any = None,
    num_classes: int | None = None,
    *,
    neighbors: int = 1,
    unit: Unit = "class",
) -> Scores:
    """Score samples or classes by their similarity to the target, by any encoder's features.

    Samples: `s[n]` is the mean of the k largest cosines of g(x_n) with the target's features. With
    k = 1, `s[n] = max_t cos(g(x_n), g(t))`, which is NormSim with p = infinity (Wang et al. 2024,
    arXiv 2405.19547).

    Classes: `s[c] = mean_{n: y_n = c} s[n]`; classes without samples come last. The class means
    whose distances Cui et al. 2018 (arXiv 1806.06193) compare are those of `feature_mapping`.

    The cost is that of a product of N x D and D x T features for N source and T target images.
    Memory: the target's features in float32, and 16 MB and one block of features per thread.

    Args:
        target: features folder of the target's training split (`dp4tl features`). In Python also
            Features, or an array g `(T, D)`.
        source: features folder of the source, from the same encoder; of the whole source to score
            samples. In Python also Features, or an array g `(N, D)`; memory maps are read block by
            block.
        labels: class ids `(N,)`, to score the classes of an array.
        num_classes: number of classes C; with `labels` only.
        neighbors: number k of nearest target images.
        unit: score samples or classes.

    Raises:
        StaleArtifactError: the features come from different encoders.

    >>> similarity([[1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]], unit="sample").scores
    array([1., 0.])
    """
    from ...kernels.checks import as_features

    check_choice("unit", unit, ("class", "sample"))
    images, of_source, about = target_and_source(target, source)
    if of_source is not None:
        if unit == "class":
            labels, num_classes = of_source.labels, num_classes_of(of_source)
        else:
            of_source = in_order_of_ids(of_source)
        source = of_source.features
    rows, images = as_features(as_array(source), "source"), as_features(images, "target")
    if not len(images):
        raise ValueError("`target` holds no image. Check the target dataset.")
    neighbors = check_int("neighbors", neighbors, 1, len(images))
    if rows.shape[1] != images.shape[1]:
        raise ValueError(
            f"`source` must have as many columns as `target`; got {rows.shape[1]} and "
            f"{images.shape[1]}. Were they computed with two encoders?"
        )
    if unit == "sample":
        scores = _nearest_cosines(rows, images, neighbors)
    elif labels is None or num_classes is None:
        raise ValueError("`labels` and `num_classes` are needed to score the classes of an array.")
    else:
        rows, labels = labelled("source", rows, labels, num_classes)
        of_samples = _nearest_cosines(rows, images, neighbors)
        means = class_means(of_samples[:, None], labels, num_classes)[:, 0]
        scores = np.nan_to_num(means, nan=_ABSENT)
    about["neighbors"] = neighbors
    return Scores(scores=scores, method="similarity", unit=unit, provenance=about)


def _nearest_cosines(source: NDArray[Any], target: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Return the mean of the `count` largest cosines of each source row with target rows `(N,)`."""
    columns = np.ascontiguousarray(unit_rows("target", target).T)
    tiles, found = blocks_of(len(target)), np.empty(len(source), dtype=np.float64)

    def compare(rows: slice) -> None:
        units = unit_rows("source", source[rows])
        largest = [_largest(units @ columns[:, images], count) for images in tiles]
        nearest = np.sort(_largest(np.concatenate(largest, axis=1), count), axis=1)
        found[rows] = nearest.mean(axis=1, dtype=np.float64)

    for_each(blocks_of(len(source)), compare)
    return found


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the `count` largest values of each row, in any order; all if there are fewer."""
    if count >= values.shape[1]:
        return values
    largest: NDArray[np.float32]
    if count == 1:  # faster
        largest = values.max(axis=1, keepdims=True)
    else:
        largest = np.partition(values, -count, axis=1)[:, -count:]
    return largest


METHOD = Method(
    function=similarity,
    flags={"target": Path, "source": Path, "neighbors": int, "unit": Unit},
    units=("class", "sample"),
    reference="[Wang et al. 2024](https://arxiv.org/abs/2405.19547)",
)
