"""Feature mapping (FM): number of target images nearest to the mean feature of each class."""

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
    target_and_source,
)
from ..scores import Scores
from ..votes import label_information, own_votes
from . import Method

if TYPE_CHECKING:
    from ..clustering.clusters import Clusters
    from ..features.features import Features


def feature_mapping(
    target: FeaturesOrArray,
    source: FeaturesOrArray,
    *,
    clusters: "Clusters | Path | str | None" = None,
) -> Scores:
    """Score source classes or pseudo-classes by feature mapping.

    `s[c] = sum_n 1[argmin_k ||g(t_n) - mu_k||_2 = c]`; equal distances go to the lowest class. The
    tie-break scores are soft votes by distance, see `dp4tl_ffcv.kernels.nearest_mean`. (arXiv
    2310.08782; the authors' script adds votes to the image's index instead of the class.)

    Warns if the votes say little about the target, see `Votes`.

    Args:
        target: features folder of the target's training split (`dp4tl features`). In Python also
            Features, or an array g `(n, D)`.
        source: features folder of the source, from the same surrogate. In Python also Features, or
            class means `(C, D)` from `class_means`; NaN rows get no votes.
        clusters: pseudo-classes of the source (`dp4tl cluster`) to score instead of its classes.

    Raises:
        StaleArtifactError: the features come from different surrogates, or the clusters from
            another source.

    >>> feature_mapping([[0.9], [1.2], [4.0]], [[0.0], [1.0], [5.0]]).scores
    array([0., 2., 1.])
    """
    from ...kernels import class_histogram

    of_target = features_or_none(target)
    labels = None if of_target is None else of_target.labels
    (nearest, votes, own), about = _nearest(
        target if labels is None else of_target, source, clusters
    )
    if not nearest.size:
        raise ValueError("`target` holds no image. Check the target dataset.")
    return Scores.of_votes(
        class_histogram(nearest, len(votes)),
        votes,
        own_votes=own_votes(nearest, own, len(votes)),
        label_information=label_information(nearest, labels),
        method="feature_mapping",
        provenance=about,
    )


def _nearest(
    target: FeaturesOrArray, source: FeaturesOrArray, clusters: "Clusters | Path | str | None"
) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]], dict[str, Any]]:
    """Return what `nearest_mean` returns for the target, and the provenance of scores."""
    from ...kernels import nearest_mean

    images, of_source, about = target_and_source(target, source)
    if of_source is None:
        if clusters is not None:
            raise ValueError("`clusters` need the source's Features; got an array as `source`.")
        means = as_array(source)
    elif clusters is None:
        means = of_source.class_means(num_classes_of(of_source))
    else:
        means, about["clusters_sha256"] = _means_of_clusters(of_source, clusters)
    return nearest_mean(images, means), about


def _votes(
    target: FeaturesOrArray,
    source: FeaturesOrArray,
    clusters: "Clusters | Path | str | None" = None,
) -> NDArray[np.int64]:
    return _nearest(target, source, clusters)[0][0]


def _means_of_clusters(
    source: "Features", clusters: "Clusters | Path | str"
) -> tuple[NDArray[np.float64], str]:
    """Return the mean features of the pseudo-classes, and the digest of the clusters."""
    from ..clustering.clusters import Clusters

    clusters = Clusters.of(clusters)
    check_one_source("clusters", (clusters.provenance, source_provenance(source)))
    if source.indices.max() >= len(clusters):
        raise ValueError(
            f"`clusters` cover {len(clusters)} samples, but the source has sample ids up to "
            f"{source.indices.max()}. Cluster this source's features."
        )
    labels = clusters.labels[source.indices]
    return class_means(source.features, labels, clusters.num_clusters), clusters.digest()


METHOD = Method(
    function=feature_mapping,
    flags={"target": Path, "source": Path, "clusters": Path | None},
    units=("class",),
    votes=_votes,
    reference="[Selectivity Drives Productivity](https://arxiv.org/abs/2310.08782)",
)
