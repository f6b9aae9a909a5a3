"""Prototype distance: how far a sample lies from the nearest cluster centre."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...validate import check_choice
from ..inputs import FeaturesOrArray, as_array, check_one_source, source_provenance, whole_source
from ..samples import blocks, distances
from ..scores import Scores
from . import Method

if TYPE_CHECKING:
    from ..clustering.clusters import Clusters


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Prototype distance: distance of each sample to the nearest cluster centre."""

    source: Path
    """Features of the source (`dp4tl features`)."""
    clusters: Path
    """Clusters of these features (`dp4tl cluster`)."""
    prefer: Literal["far", "near"] = "far"
    """Which samples are kept first."""


def prototype_distance(
    source: FeaturesOrArray,
    clusters: "Clusters | str | os.PathLike[str]",
    *,
    prefer: Literal["far", "near"] = "far",
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score samples by their distance to the nearest centroid of a clustering.

    `s[n] = min_k ||g(x_n) - centroids[k]||_2`, or its negative for `prefer="near"`. (The
    self-supervised prototypes of Sorscher et al. 2022, arXiv 2206.14486: far samples are hard, and
    worth keeping where data abound; near samples where data are scarce. The paper measures by the
    cosine: for that, scale features to unit length before clustering.)

    Args:
        source: Features of the whole source, or the path of their folder; or features g `(N, D)`,
            where memory maps are read block by block. The clusters must be theirs.
        clusters: clusters of these samples, or the path of their file.
        prefer: which samples are kept first.
        provenance: facts to record with the scores.

    Raises:
        StaleArtifactError: the clusters were made for another source.
    """
    from ...kernels import nearest_mean
    from ...kernels.checks import as_features
    from ..clustering.clusters import Clusters

    check_choice("prefer", prefer, ("far", "near"))
    clusters = Clusters.of(clusters)
    about: dict[str, Any] = {"prefer": prefer, "clusters": clusters.described()}
    if (features := whole_source(source)) is not None:
        about |= source_provenance(features)
        source = features.features
    about |= provenance or {}
    values = as_features(as_array(source), "source")
    if values.shape != (len(clusters), clusters.centroids.shape[1]):
        raise ValueError(
            f"`clusters` are of features of shape "
            f"{(len(clusters), clusters.centroids.shape[1])}; got `source` of shape "
            f"{values.shape}. Cluster these features."
        )
    about |= check_one_source("clusters", (clusters.provenance, about))
    nearest = [nearest_mean(values[rows], clusters.centroids)[0] for rows in blocks(values)]
    far = distances(values, clusters.centroids, np.concatenate(nearest))
    return Scores(
        scores=far if prefer == "far" else -far,
        method="prototype_distance",
        unit="sample",
        provenance=about,
    )


METHOD = Method(
    function=prototype_distance,
    inputs=Inputs,
    units=("sample",),
    reference="[Sorscher et al. 2022](https://arxiv.org/abs/2206.14486)",
)
