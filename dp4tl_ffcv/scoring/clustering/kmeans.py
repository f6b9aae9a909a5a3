"""k-means of source features: pseudo-classes for sources without labels."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import requires
from ...kernels import nearest_mean
from ...kernels.checks import as_features
from ...kernels.threads import one_blas_thread
from ...validate import check_int
from ..inputs import FeaturesOrArray, as_array, blocks, whole_source
from .clusters import Clusters

_SEEDING_ROWS = 1 << 12  # the first centroids are chosen from at least this many rows
_SEEDING_ROWS_EACH = 16  # ... and from this many per centroid
_SILHOUETTE_ROWS = 10_000
_DISTANCE_ROWS = 1024
_LARGEST_SQUARE = 1e36  # largest squared norm: faiss aborts if float32 overflows


def cluster(
    features: FeaturesOrArray,
    num_clusters: int | Sequence[int],
    *,
    levels: Sequence[int] = (),
    seed: int = 0,
    iterations: int = 25,
    sample: int = 256,
    out: str | os.PathLike[str] | None = None,
) -> Clusters:
    """Cluster features by k-means (faiss): `labels[n] = argmin_k ||features[n] - centroids[k]||_2`.

    The centroids are fitted to a random sample of the rows. Then each row is assigned to its
    nearest centroid; the lowest wins an exact tie. Empty clusters are dropped, so there may be
    fewer than `num_clusters`.

    With `levels`, the rows are clustered into the first, largest number; the resulting centroids
    are clustered into the next number, and so on down to `num_clusters`. Centroids have equal
    weights, so large groups of similar samples get fewer pseudo-classes than from plain k-means.
    (Vo et al. 2024, arXiv 2405.15613, without their resampling.)

    If several numbers of clusters are given, the result with the largest simplified silhouette is
    returned, on a tie the smaller number. The simplified silhouette is the mean over 10,000 random
    samples of `(b - a) / max(a, b)`, with a the distance to the sample's own centroid and b the
    distance to the nearest other one; 0 for a single cluster. (Hruschka et al. 2004; Vendramin et
    al. 2010.) The provenance records all silhouettes as `silhouette`.

    Results do not depend on the number of threads, but may depend on the version of faiss. Peak
    memory: the random sample, in its own type and in float32.

    Args:
        features: Features of the whole source, the path of their folder, or an array `(N, D)` of
            float16, float32 or float64; memory maps are read block by block.
        num_clusters: number of clusters K, from 1 to N; or several to choose from.
        levels: for hierarchical k-means, the larger numbers of clusters to form first, descending.
        seed: seed of the random samples and of the first centroids.
        iterations: iterations of k-means on each level.
        sample: rows per cluster of the first level that the centroids are fitted to.
        out: file (`.npz`) to write the clusters to.
    """
    source, about = whole_source(features)
    if source is not None:
        about = {"features": about["source"], "source_fingerprint": about["source_fingerprint"]}
        features = source.features
    values = as_features(as_array(features))
    counts = list(num_clusters) if isinstance(num_clusters, Sequence) else [num_clusters]
    if not counts or len(set(counts)) != len(counts):
        raise ValueError(f"`num_clusters` must name distinct numbers; got {tuple(counts)}.")
    if not len(values):
        raise ValueError("`features` must have at least one row; got none. Check the source.")
    finer = [check_int("levels", level, 1, len(values)) for level in levels]
    for count in counts:  # check all before clustering
        sizes = [*finer, check_int("num_clusters", count, 1, len(values))]
        if any(more <= fewer for more, fewer in pairwise(sizes)):
            raise ValueError(
                f"`levels` must descend, and end above `num_clusters`; got {tuple(levels)} and "
                f"{count}."
            )
    options: dict[str, Any] = {
        "levels": finer,
        "seed": check_int("seed", seed, 0),
        "iterations": check_int("iterations", iterations, 1),
        "sample": check_int("sample", sample, 1),
    }
    if len(counts) == 1:
        best = _cluster(values, int(counts[0]), options)
    else:
        best, about["silhouette"] = _best_of(values, sorted(map(int, counts)), options)
    clusters = replace(best, provenance={**best.provenance, **about})
    if out is not None:
        clusters.save(out)
    return clusters


def _cluster(values: NDArray[Any], num_clusters: int, options: Mapping[str, Any]) -> Clusters:
    generator = np.random.default_rng(options["seed"])
    counts, iterations = [*options["levels"], num_clusters], options["iterations"]
    drawn = values[_choose(len(values), options["sample"] * counts[0], generator)]
    centroids = _fit(drawn, counts[0], iterations, generator)
    labels = np.concatenate([nearest_mean(values[b], centroids)[0] for b in blocks(values)])
    labels, centroids = _drop_empty(labels, centroids)
    for count in counts[1:]:
        fine = centroids
        centroids = _fit(fine, min(count, len(fine)), iterations, generator)
        labels = nearest_mean(fine, centroids)[0][labels]
        labels, centroids = _drop_empty(labels, centroids)
    about = {"method": "k-means", "num_clusters": num_clusters, **options}
    return Clusters(labels=labels, centroids=centroids, provenance=about)


def _best_of(
    values: NDArray[Any], counts: Sequence[int], options: Mapping[str, Any]
) -> tuple[Clusters, dict[str, float]]:
    """Return the clusters with the largest silhouette, and all silhouettes."""
    generator = np.random.default_rng(options["seed"])
    drawn = _choose(len(values), _SILHOUETTE_ROWS, generator)
    rows = values[drawn].astype(np.float64)
    silhouettes: dict[str, float] = {}
    for count in counts:
        tried = _cluster(values, count, options)
        silhouette = _silhouette(rows, tried.labels[drawn], tried.centroids)
        if not silhouettes or silhouette > max(silhouettes.values()):
            best = tried
        silhouettes[str(count)] = silhouette
    return best, silhouettes


def _fit(
    rows: NDArray[Any], count: int, iterations: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return the centroids `(count, D)` of k-means on `rows`."""
    with requires("faiss-cpu", "k-means"):
        import faiss
    moved: NDArray[np.float32] = np.empty(rows.shape, dtype=np.float32)
    largest = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        # faiss computes distances from norms and products; rounding is least around the origin.
        origin = rows.mean(axis=0, dtype=np.float64)
        for block in blocks(rows):
            gaps = rows[block] - origin
            moved[block] = gaps
            largest = max(largest, float(np.einsum("nd,nd->n", gaps, gaps).max()))
    if not np.isfinite(moved).all():
        raise ValueError(
            "`features` hold NaN or inf, or values that overflow float32. Check the encoder's "
            "outputs."
        )
    if largest > _LARGEST_SQUARE:
        raise ValueError(
            f"`features` are up to {largest**0.5:g} from their mean; squares of more than "
            f"{_LARGEST_SQUARE**0.5:g} overflow float32. Scale the features down."
        )
    kmeans = faiss.Kmeans(
        moved.shape[1],
        count,
        niter=iterations,
        min_points_per_centroid=1,  # no warning: the caller chose the number
        max_points_per_centroid=len(moved),  # the sample is already drawn
    )
    kmeans.train(moved, init_centroids=_spread_out(moved, count, generator))
    centroids: NDArray[np.float32] = (kmeans.centroids + origin).astype(np.float32)
    return centroids


def _spread_out(
    rows: NDArray[np.float32], count: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Choose the first centroids by greedy k-means++ (Arthur and Vassilvitskii 2007).

    From faiss's own, uniform start, k-means may leave two distant groups in one cluster.
    """
    rows = rows[_choose(len(rows), max(_SEEDING_ROWS, _SEEDING_ROWS_EACH * count), generator)]
    norms = np.einsum("nd,nd->n", rows, rows)
    distances = np.ones(len(rows), dtype=np.float32)
    draws = 2 + int(np.log(count))
    chosen = np.empty(count, dtype=np.int64)
    with one_blas_thread():
        for number in range(count):
            reach = np.cumsum(distances, dtype=np.float64)
            drawn = np.searchsorted(reach, generator.random(draws) * reach[-1], side="right")
            drawn = np.minimum(drawn, len(rows) - 1)  # all distances may be 0
            # (draws, rows): one product reads all rows once for all draws.
            tried = norms[drawn, None] + norms - 2 * (rows[drawn] @ rows.T)
            tried[np.arange(draws), drawn] = 0.0
            np.maximum(tried, 0.0, out=tried)
            if number:
                np.minimum(tried, distances, out=tried)
            best = tried.sum(axis=1, dtype=np.float64).argmin()
            chosen[number], distances = drawn[best], tried[best]
    return rows[chosen]


def _choose(total: int, count: int, generator: np.random.Generator) -> NDArray[np.int64] | slice:
    """Draw `count` of `total` rows, in ascending order, so that a memory map is read forwards."""
    if count >= total:
        return slice(None)
    return np.sort(generator.choice(total, count, replace=False))


def _drop_empty(
    labels: NDArray[np.int64], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    used = np.bincount(labels, minlength=len(centroids)) > 0
    return (np.cumsum(used) - 1)[labels], centroids[used]


def _silhouette(
    rows: NDArray[np.float64], labels: NDArray[np.int64], centroids: NDArray[np.float32]
) -> float:
    if len(centroids) < 2:
        return 0.0
    origin = rows.mean(axis=0)
    centres = centroids - origin
    squares = np.einsum("kd,kd->k", centres, centres)
    total = 0.0
    with one_blas_thread():
        for start in range(0, len(rows), _DISTANCE_ROWS):
            block = rows[start : start + _DISTANCE_ROWS] - origin
            own = labels[start : start + _DISTANCE_ROWS]
            norms = np.einsum("nd,nd->n", block, block)
            distances = norms[:, None] + squares - 2.0 * (block @ centres.T)
            distances = np.sqrt(np.maximum(distances, 0.0))
            mine = distances[np.arange(len(own)), own]
            distances[np.arange(len(own)), own] = np.inf
            other = distances.min(axis=1)
            larger = np.maximum(mine, other)
            total += float(((other - mine) / np.where(larger > 0, larger, 1.0)).sum())
    return total / len(rows)
