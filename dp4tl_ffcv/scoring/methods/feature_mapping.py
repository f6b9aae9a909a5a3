"""Feature mapping (FM): how many target images lie nearest to each source class mean."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels import class_histogram, class_sums, nearest_mean
from ..scores import Scores


def class_means(features: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Average the surrogate's features of each source (pseudo-)class.

    `mu[c] = mean_{n: labels[n] = c} g(x_n)`, without normalisation; summed in float64.

    Args:
        features: `(N, D)` of float16, float32 or float64; memory maps are read block by block.
        labels: class or cluster ids `(N,)`.
        num_classes: C.

    Returns:
        Means `(C, D)`; NaN rows for classes without samples.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a label is out of range, shapes do not fit, or a feature is not finite.
    """
    sums, counts = class_sums(features, labels, num_classes)
    if not np.isfinite(sums).all():
        raise ValueError(
            "`features` must be finite; got NaN or inf. Check the surrogate's outputs."
        )
    means = np.full_like(sums, np.nan)
    present = counts > 0
    means[present] = sums[present] / counts[present, None]
    return means


def feature_mapping(
    target_features: ArrayLike,
    means: ArrayLike,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score source (pseudo-)classes by feature mapping.

    `s[c] = sum_n 1[argmin_k ||g(t_n) - mu_k||_2 = c]`; equal distances go to the lowest class. The
    tie key is the soft form of the same votes, see `dp4tl_ffcv.kernels.nearest_mean`. (arXiv
    2310.08782; the authors' script adds the votes up under the image's index instead.)

    Args:
        target_features: surrogate features g of the target images `(n, D)`, n >= 1.
        means: class means `(C, D)` from `class_means`; NaN rows never win a vote.
        provenance: kept with the scores.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes do not fit, or a value is not finite.

    >>> feature_mapping([[0.9], [1.2], [4.0]], [[0.0], [1.0], [5.0]]).scores
    array([0., 2., 1.])
    """
    nearest, mass = nearest_mean(target_features, means)
    if not nearest.size:
        raise ValueError(
            "`target_features` must have at least one row; got none. Check the target dataset."
        )
    counts = class_histogram(nearest, len(mass))
    return Scores(
        scores=counts.astype(np.float64), tie=mass, method="fm", provenance=provenance or {}
    )
