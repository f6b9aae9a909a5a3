"""Feature mapping (FM): how many target images lie nearest to each source class mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..features.reductions import class_means
from ..inputs import (
    FeaturesOrArray,
    as_array,
    check_one_source,
    features_or_none,
    num_classes_of,
    source_provenance,
)
from ..scores import Scores
from . import Method

if TYPE_CHECKING:
    from ..clustering.clusters import Clusters
    from ..features.features import Features


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Feature mapping (FM): target images whose nearest class mean is that of each class."""

    target: Path
    """Features of the target's training split (`dp4tl features`)."""
    source: Path
    """Features of the source, from the same surrogate."""
    clusters: Path | None = None
    """Pseudo-classes (`dp4tl cluster`) to score instead of the source's classes."""


def feature_mapping(
    target: FeaturesOrArray,
    source: FeaturesOrArray,
    *,
    clusters: "Clusters | Path | str | None" = None,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score source classes or pseudo-classes by feature mapping.

    `s[c] = sum_n 1[argmin_k ||g(t_n) - mu_k||_2 = c]`; equal distances go to the lowest class. The
    tie-break scores are soft votes by distance, see `dp4tl_ffcv.kernels.nearest_mean`. (arXiv
    2310.08782; the authors' script adds the votes up under the image's index instead.)

    Args:
        target: the target's Features or the path of their folder; or features g `(n, D)`.
        source: the source's Features or the path of their folder, from the same surrogate; or
            class means `(C, D)` from `class_means`, where NaN rows never win a vote.
        clusters: pseudo-classes of the source to score instead of its classes; needs Features.
        provenance: facts to record with the scores.

    Raises:
        StaleArtifactError: the features come from different surrogates, or the clusters from
            another source.

    >>> feature_mapping([[0.9], [1.2], [4.0]], [[0.0], [1.0], [5.0]]).scores
    array([0., 2., 1.])
    """
    from ...kernels import class_histogram, nearest_mean
    from ..features.features import check_same_surrogate

    of_target, of_source = features_or_none(target), features_or_none(source)
    about: dict[str, Any] = {}
    if of_target is not None:
        about["target"] = dict(of_target.provenance)
        target = of_target.features
        if of_source is not None:
            check_same_surrogate(of_target, of_source)
    if of_source is None:
        if clusters is not None:
            raise ValueError("`clusters` need the source's Features; got an array as `source`.")
        means = as_array(source)
    else:
        about |= source_provenance(of_source)
        if clusters is None:
            means = of_source.class_means(num_classes_of(of_source))
        else:
            means, about["clusters_sha256"] = _means_of_clusters(of_source, clusters)
    nearest, votes = nearest_mean(as_array(target), means)
    if not nearest.size:
        raise ValueError("`target` holds no image. Check the target dataset.")
    return Scores(
        scores=class_histogram(nearest, len(votes)).astype(np.float64),
        tie_break=votes,
        method="feature_mapping",
        provenance={**about, **(provenance or {})},
    )


def _means_of_clusters(
    source: "Features", clusters: "Clusters | Path | str"
) -> tuple[NDArray[np.float64], str]:
    """Return the mean features of the pseudo-classes, and the digest of the clusters."""
    from ..clustering.clusters import Clusters

    clusters = Clusters.of(clusters)
    check_one_source("clusters", (clusters.provenance, source_provenance(source)))
    if source.indices.max() >= len(clusters):
        raise ValueError(
            f"`clusters` hold {len(clusters)} samples, but the source has ids up to "
            f"{source.indices.max()}. Cluster this source's features."
        )
    labels = clusters.labels[source.indices]
    return class_means(source.features, labels, clusters.num_clusters), clusters.digest()


METHOD = Method(
    function=feature_mapping,
    inputs=Inputs,
    units=("class",),
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
