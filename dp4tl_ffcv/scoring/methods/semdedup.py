"""SemDeDup: near-duplicates last, by the cosines of features within each cluster."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..cosines import blocks_of, for_each, unit_rows
from ..inputs import FeaturesOrArray, clustered
from ..scores import Scores
from . import Method

if TYPE_CHECKING:
    from ..clustering.clusters import Clusters

_FIRST = -1.0  # cosine of a cluster's first sample with none


def semdedup(source: FeaturesOrArray, clusters: "Clusters | str | os.PathLike[str]") -> Scores:
    """Score samples by how little they resemble samples of their cluster that lie farther out.

    In each cluster, the samples are ordered by their cosine with the centroid, least similar first;
    equal ones by id. `s[n] = 1 - max cos(g(x_n), g(x_m))` over the samples m before n, and 2 for
    the first. So `select(..., min_score=eps)` removes the samples that SemDeDup removes with its
    threshold eps, and `keep` removes the most duplicated samples first. Class labels are not used.
    (Abbas et al. 2023, arXiv 2303.09540, who cluster features of unit length: scale features
    before clustering to do the same.)

    The cost is that of D multiplications for each pair of samples in a cluster. Memory: two blocks
    of features and 16 MB per thread.

    Args:
        source: features folder of the whole source (`dp4tl features`). In Python also Features, or
            an array g `(N, D)`; memory maps are read block by block.
        clusters: clusters of these features (`dp4tl cluster`). More clusters take less time and
            miss more duplicates.

    Raises:
        StaleArtifactError: the clusters were made for another source.
    """
    values, clusters, about = clustered(source, clusters)
    centres = unit_rows("clusters", clusters.centroids)
    closeness = np.empty(len(values), dtype=np.float32)

    def approach(rows: slice) -> None:
        units = unit_rows("source", values[rows])
        units *= centres[clusters.labels[rows]]
        closeness[rows] = units.sum(axis=1)  # the order of addition is fixed

    for_each(blocks_of(len(values)), approach)
    order = np.lexsort((closeness, clusters.labels))  # stable: equal ones remain in order of ids
    stops = np.cumsum(np.bincount(clusters.labels, minlength=clusters.num_clusters))
    scores = np.empty(len(values), dtype=np.float64)

    def compare(task: tuple[NDArray[np.int64], slice]) -> None:
        members, columns = task
        scores[members[columns]] = 1.0 - _largest_before(values, members, columns)

    for_each(
        [
            (members, columns)
            for members in np.split(order, stops[:-1])
            for columns in blocks_of(len(members))
        ],
        compare,
    )
    return Scores(scores=scores, method="semdedup", unit="sample", provenance=about)


def _largest_before(
    values: NDArray[np.floating], members: NDArray[np.int64], columns: slice
) -> NDArray[np.float32]:
    """Return, for members in `columns`, the largest cosine with members before them."""
    units = unit_rows("source", values[members[columns]])
    largest = np.full(len(units), _FIRST, dtype=np.float32)
    for rows in blocks_of(columns.stop):
        others = units if rows == columns else unit_rows("source", values[members[rows]])
        cosines = others @ units.T
        if rows == columns:
            cosines[np.tril_indices(len(units))] = _FIRST
        np.maximum(largest, cosines.max(axis=0), out=largest)
    return largest


METHOD = Method(
    function=semdedup,
    flags={"source": Path, "clusters": Path},
    units=("sample",),
    reference="[Abbas et al. 2023](https://arxiv.org/abs/2303.09540)",
)
