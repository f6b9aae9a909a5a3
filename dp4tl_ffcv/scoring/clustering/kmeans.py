"""k-means of source features: pseudo-classes for sources without labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from ...kernels import nearest_mean
from ...kernels.checks import as_features
from ..checks import whole
from .clusters import Clusters

_BLOCK_ROWS = 1 << 14  # of features that are assigned at a time: 32 MB of 512 float32
_SEEDING_ROWS = 1 << 12  # that the first centroids are chosen from, at least,
_SEEDING_ROWS_EACH = 16  # and for each of them
_SILHOUETTE_ROWS = 10_000
_DISTANCE_ROWS = 1024
_LARGEST_SQUARE = 1e36  # of a norm, for faiss: where float32 overflows, it ends the process


def cluster(
    features: ArrayLike,
    num_clusters: int,
    *,
    levels: Sequence[int] = (),
    seed: int = 0,
    iterations: int = 25,
    sample: int = 256,
    provenance: Mapping[str, Any] | None = None,
) -> Clusters:
    """Cluster features by k-means (faiss): `labels[n] = argmin_k ||features[n] - centroids[k]||_2`.

    The centroids are fitted to a drawn sample of the rows; then every row goes to its nearest one,
    exact ties to the lowest. With `levels`, the rows are clustered into the first, largest number,
    those centroids into the next, and so on down to `num_clusters`, and samples inherit: by
    weighing centroids alike, large groups of near-equal samples get fewer of the pseudo-classes
    than plain k-means gives them. (Vo et al. 2024, arXiv 2405.15613; without their resampling.)

    A cluster that no sample falls into is left out, so that there may be fewer than
    `num_clusters`. Bits do not depend on the number of threads; they may on faiss's version.
    Memory beyond the arguments: the sample, once as it is and once in float32.

    Args:
        features: `(N, D)` of float16, float32 or float64; memory maps are read block by block.
        num_clusters: K, in 1 to N.
        levels: numbers of clusters of the finer levels, descending, each above `num_clusters`.
        seed: of the sample and of the first centroids.
        iterations: of k-means, on each level.
        sample: rows per cluster of the first level that the centroids are fitted to.
        provenance: kept with the clusters.

    Raises:
        TypeError: a dtype is wrong, or a number is not whole.
        ValueError: a number is out of range, a feature is not finite or so large that its squares
            do not fit into float32, or faiss is not installed.
    """
    values = as_features(features)
    counts = _check_levels(levels, num_clusters, len(values))
    for name, number in (("iterations", iterations), ("sample", sample)):
        whole(name, number, 1)
    generator = np.random.default_rng(whole("seed", seed, 0))
    drawn = values[_choose(len(values), int(sample) * counts[0], generator)]
    centroids = _fit(drawn, counts[0], iterations, generator)
    labels = np.concatenate([nearest_mean(rows, centroids)[0] for rows in _blocks(values)])
    labels, centroids = _drop_empty(labels, centroids)
    for count in counts[1:]:
        fine = centroids
        centroids = _fit(fine, min(count, len(fine)), iterations, generator)
        labels = nearest_mean(fine, centroids)[0][labels]
        labels, centroids = _drop_empty(labels, centroids)
    made = {
        "method": "k-means",
        "num_clusters": counts[-1],
        "levels": list(counts[:-1]),
        "seed": int(seed),
        "iterations": int(iterations),
        "sample": int(sample),
    }
    return Clusters(labels=labels, centroids=centroids, provenance={**made, **(provenance or {})})


def sweep_clusters(
    features: ArrayLike,
    counts: Sequence[int],
    *,
    levels: Sequence[int] = (),
    seed: int = 0,
    iterations: int = 25,
    sample: int = 256,
    provenance: Mapping[str, Any] | None = None,
) -> Clusters:
    """Cluster into each of several numbers of clusters, and return the best.

    The best has the largest simplified silhouette: the mean over samples of `(b - a) / max(a, b)`,
    with a the distance to the sample's own centroid and b that to the nearest other one, on 10,000
    drawn samples; 0 for a single cluster. Of equal figures the smaller number wins. (Hruschka et
    al. 2004; Vendramin et al. 2010.) Each number's figure is kept in the provenance as `sweep`.

    Args:
        features: as for `cluster`, and so is all below.
        counts: numbers of clusters to try, each once.
        levels: finer levels, shared by all.
        seed: of every sample that is drawn.
        iterations: of k-means, on each level.
        sample: rows per cluster that the centroids are fitted to.
        provenance: kept with the clusters.

    Raises:
        TypeError: as `cluster`.
        ValueError: as `cluster`; or `counts` is empty or repeats a number.
    """
    values = as_features(features)
    if not counts or len(set(counts)) != len(counts):
        raise ValueError(
            f"`counts` must hold each number of clusters once; got {tuple(counts)}. Name those to "
            "try."
        )
    for count in counts:  # all are checked before the work on any
        _check_levels(levels, count, len(values))
    drawn = _choose(len(values), _SILHOUETTE_ROWS, np.random.default_rng(whole("seed", seed, 0)))
    rows = values[drawn].astype(np.float64)
    figures: dict[str, float] = {}
    for count in sorted(counts):
        tried = cluster(
            values, count, levels=levels, seed=seed, iterations=iterations, sample=sample
        )
        figure = _silhouette(rows, tried.labels[drawn], tried.centroids)
        if not figures or figure > max(figures.values()):
            best = tried
        figures[str(count)] = figure
    made = {**best.provenance, "sweep": figures, **(provenance or {})}
    return replace(best, provenance=made)


def _fit(
    rows: NDArray[Any], count: int, iterations: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return the centroids `(count, D)` of k-means on `rows`."""
    faiss = _import_faiss()
    moved: NDArray[np.float32] = np.empty(rows.shape, dtype=np.float32)
    largest = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        # faiss takes distances from norms and products, which round least around the origin.
        origin = rows.mean(axis=0, dtype=np.float64)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            gaps = rows[block] - origin
            moved[block] = gaps
            largest = max(largest, float(np.einsum("nd,nd->n", gaps, gaps).max()))
    if not np.isfinite(moved).all():
        raise ValueError(
            "`features` must be finite, and in float32, too; got NaN or inf. Check the encoder's "
            "outputs."
        )
    if largest > _LARGEST_SQUARE:
        raise ValueError(
            f"`features` must be at most {_LARGEST_SQUARE**0.5:g} from their mean, so that squares "
            f"fit into float32; got a distance of {largest**0.5:g}. Scale them down."
        )
    kmeans = faiss.Kmeans(
        moved.shape[1],
        count,
        niter=iterations,
        min_points_per_centroid=1,  # fewer are no reason to warn: the caller chose
        max_points_per_centroid=len(moved),  # the sample is drawn already
    )
    kmeans.train(moved, init_centroids=_spread_out(moved, count, generator))
    centroids: NDArray[np.float32] = (kmeans.centroids + origin).astype(np.float32)
    return centroids


def _spread_out(
    rows: NDArray[np.float32], count: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Choose `count` rows to start from, likelier the farther from those that are chosen already.

    From faiss's own start, which draws all alike, k-means may leave two far groups in one cluster.
    (k-means++ of Arthur and Vassilvitskii 2007, which keeps the best of a few draws each time, on
    a drawn part of the rows.)
    """
    rows = rows[_choose(len(rows), max(_SEEDING_ROWS, _SEEDING_ROWS_EACH * count), generator)]
    norms = np.einsum("nd,nd->n", rows, rows)
    distances = np.ones(len(rows), dtype=np.float32)
    draws = 2 + int(np.log(count))
    chosen = np.empty(count, dtype=np.int64)
    with threadpool_limits(1, user_api="blas"):  # fixes the bits
        for number in range(count):
            reach = np.cumsum(distances, dtype=np.float64)
            drawn = np.searchsorted(reach, generator.random(draws) * reach[-1], side="right")
            drawn = np.minimum(drawn, len(rows) - 1)  # beyond, if all lie on a chosen one
            # (draws, rows): one product reads all rows once, for however many draws.
            tried = norms[drawn, None] + norms - 2 * (rows[drawn] @ rows.T)
            tried[np.arange(draws), drawn] = 0.0
            np.maximum(tried, 0.0, out=tried)
            if number:
                np.minimum(tried, distances, out=tried)
            best = tried.sum(axis=1, dtype=np.float64).argmin()
            chosen[number], distances = drawn[best], tried[best]
    return rows[chosen]


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "`cluster` must have faiss to run k-means; got none. Install it with "
            "`pip install faiss-cpu`."
        ) from error
    return faiss


def _choose(total: int, count: int, generator: np.random.Generator) -> NDArray[np.int64] | slice:
    """Return `count` of `total` rows, ascending: a memory map is read in one direction."""
    if count >= total:
        return slice(None)
    return np.sort(generator.choice(total, count, replace=False))


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(values), _BLOCK_ROWS):
        yield values[start : start + _BLOCK_ROWS]


def _drop_empty(
    labels: NDArray[np.int64], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Leave out clusters without a sample, and number the others anew in their order."""
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
    with threadpool_limits(1, user_api="blas"):  # fixes the bits
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


def _check_levels(levels: Sequence[int], num_clusters: int, num_rows: int) -> tuple[int, ...]:
    """Return every level's number of clusters, finest first."""
    if not num_rows:
        raise ValueError("`features` must have at least one row; got none. Check the source.")
    whole("num_clusters", num_clusters, 1, num_rows)
    counts = (*(whole("levels", count, 1, num_rows) for count in levels), int(num_clusters))
    if any(finer <= coarser for finer, coarser in pairwise(counts)):
        raise ValueError(
            f"`levels` must descend, and end above `num_clusters`; got {tuple(levels)} and "
            f"{num_clusters}. Name the finest level first."
        )
    return counts
