"""Prototype distance: distance of each sample to the nearest cluster centre."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...validate import check_choice
from ..inputs import FeaturesOrArray, blocks, clustered, distances
from ..scores import Scores
from . import Method

if TYPE_CHECKING:
    from ..clustering.clusters import Clusters

Preference = Literal["far", "near"]


def prototype_distance(
    source: FeaturesOrArray,
    clusters: "Clusters | str | os.PathLike[str]",
    *,
    prefer: Preference = "far",
) -> Scores:
    """Score samples by their distance to the nearest centroid of a clustering.

    `s[n] = min_k ||g(x_n) - centroids[k]||_2`, or its negative for `prefer="near"`. (The
    self-supervised prototypes of Sorscher et al. 2022, arXiv 2206.14486: keep far, hard samples of
    a large dataset, and near samples of a small one. The paper uses the cosine distance: scale
    features to unit length before clustering to do the same.)

    Args:
        source: features folder of the whole source (`dp4tl features`). In Python also Features, or
            an array g `(N, D)`; memory maps are read block by block.
        clusters: clusters of these features (`dp4tl cluster`).
        prefer: samples to keep first, far from the centres or near them.

    Raises:
        StaleArtifactError: the clusters were made for another source.
    """
    from ...kernels import nearest_mean

    check_choice("prefer", prefer, ("far", "near"))
    values, clusters, about = clustered(source, clusters)
    about["prefer"] = prefer
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
    flags={"source": Path, "clusters": Path, "prefer": Preference},
    units=("sample",),
    reference="[Sorscher et al. 2022](https://arxiv.org/abs/2206.14486)",
)
