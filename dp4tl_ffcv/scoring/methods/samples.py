"""Scores of source samples that look at no target: what the paper's methods are compared with."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels import nearest_mean
from ...kernels.checks import as_features, as_labels
from ...validate import check_int
from ..checks import one_source, whole
from ..clustering.clusters import Clusters
from ..scores import Scores
from .feature_mapping import class_means

_BLOCK_BYTES = 1 << 25  # of float64 at a time: memory maps are larger than the memory
_MOST_STRATA = 1_000_000  # which are counted one by one


def el2n(
    logits: ArrayLike, labels: ArrayLike, *, provenance: Mapping[str, Any] | None = None
) -> Scores:
    """Score samples by the norm of the error of their prediction; the hardest are kept first.

    `s[n] = ||softmax(h(x_n)) - onehot(y_n)||_2`. (EL2N of Paul et al. 2021, arXiv 2107.07075, who
    take the mean over runs early in training: that is `mean_scores` over one call per checkpoint.)

    Args:
        logits: h of every source sample `(N, C)`, float; memory maps are read block by block.
        labels: their classes `(N,)`, each in `[0, C)`.
        provenance: kept with the scores.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes do not fit, a label is out of range, or a logit is not finite.

    >>> el2n([[4.0, 0.0], [0.0, 4.0]], [0, 0]).ranking()
    array([1, 0])
    """
    values, ids = _labelled("logits", logits, labels)
    norms = np.empty(len(values), dtype=np.float64)
    for rows in _blocks(values):
        block = values[rows].astype(np.float64)
        if not np.isfinite(block).all():
            raise ValueError("`logits` must be finite; got NaN or inf. Check the model's outputs.")
        with np.errstate(over="ignore"):  # where a class is out of the question
            block -= block.max(axis=1, keepdims=True)
        np.exp(block, out=block)
        totals = block.sum(axis=1)
        # 1 - p is the share of the others; a difference would round it to 0 where p is near 1.
        block[np.arange(len(block)), ids[rows]] = 0.0
        others = block.sum(axis=1)
        norms[rows] = np.sqrt((block**2).sum(axis=1) + others**2) / totals
    return _of_samples(norms, "el2n", provenance or {})


def moderate(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    median: Literal["class", "all"] = "class",
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score samples by how near their distance to their class is to the median distance.

    `s[n] = -|d_n - median_{m: y_m = y_n} d_m|` with `d_n = ||g(x_n) - mu[y_n]||_2` and mu the class
    means; with `median="all"` the median is that of all samples. (Moderate coreset, Xia et al.
    2023, openreview 7D5EECbOaf9.)

    Published code takes the middle ranks of the distances where this takes the nearest to the
    median, and the median of each feature for a class's centre: DP4TL's `data_wise_moderate`
    within each class, which is `select(..., balanced=True)` of these scores; that of Xia et al.
    (tmllab/2023_ICLR_Moderate-DS) over all samples at once, which is `median="all"`.

    Args:
        features: g of every source sample `(N, D)` of float16, float32 or float64; memory maps are
            read block by block, twice.
        labels: their classes `(N,)`, each in `[0, num_classes)`.
        num_classes: C.
        median: of the distances of a sample's own class, or of all.
        provenance: kept with the scores.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes do not fit, a label is out of range, or a feature is not finite.

    >>> moderate([[0.0], [4.0], [17.0], [10.0], [9.0]], [0, 0, 1, 1, 1], 2).ranking()
    array([0, 1, 4, 3, 2])
    """
    if median not in ("class", "all"):
        raise ValueError(f"`median` must be class or all; got {median!r}. Choose one.")
    values, ids = _labelled("features", features, labels, num_classes)
    distances = _distances(values, class_means(values, ids, num_classes), ids)
    groups = ids if median == "class" else np.zeros_like(ids)
    middles = _medians(distances, groups, num_classes)[groups]
    about = {"median": median, **(provenance or {})}
    return _of_samples(-np.abs(distances - middles), "moderate", about)


def moderate_classes(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score classes as `moderate` scores samples: each class mean is a sample of one class.

    `s[c] = -|D_c - median(D)|` with `D_c = ||mu[c] - mean_k mu[k]||_2` over the classes that have
    samples; the others come last.

    This is this project's own reading of a class-wise Moderate. DP4TL's script of that name
    looks at the target, too: its `cmt` and `cmt_median` rank classes by the mean distance of their
    mean to the centres of the target's classes, and its `ffmm` is feature mapping to means of each
    class's middle samples.

    Args:
        features: as for `moderate`, and so is all below.
        labels: classes `(N,)`.
        num_classes: C.
        provenance: kept with the scores.

    Raises:
        TypeError: as `moderate`.
        ValueError: as `moderate`.
    """
    values, ids = _labelled("features", features, labels, num_classes)
    means = class_means(values, ids, num_classes)
    present = ~np.isnan(means).any(axis=1)
    middle = means[present].mean(axis=0, keepdims=True)
    distances = _distances(means[present], middle, np.zeros(present.sum(), dtype=np.int64))
    near = -np.abs(distances - np.median(distances))
    scores = np.full(len(means), near.min())
    scores[present] = near
    # The tie key puts classes without samples behind the worst of the others.
    tie = np.where(present, 0.0, -1.0)
    return Scores(scores=scores, tie=tie, method="moderate", provenance=provenance or {})


def coverage_centric(
    difficulty: Scores,
    *,
    strata: int = 50,
    cutoff: float = 0.0,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Order samples so that the first m of any number m cover all difficulties evenly.

    The share `cutoff` that is hardest comes last, the least hard of it first. The range of the
    others is cut into strata of equal width. Each stratum is shuffled, and in every round each that
    is not used up gives one sample, the largest stratum first and of equal ones the harder. So the
    first m hold `min(size, level)` of each stratum, with what is left over for the largest: the
    budget of coverage-centric coreset selection, for every m at once. (CCS, Zheng et al. 2023,
    arXiv 2210.15809; m counts on from the samples that are not cut off.)

    `s[n] = N - position of n`.

    Args:
        difficulty: scores of samples that are high for hard ones, such as `el2n` and `grand`.
        strata: number of strata, 1 to 1,000,000.
        cutoff: fraction in [0, 1) that is likely mislabelled, rounded down to whole samples.
        seed: of the shuffles.
        provenance: kept with the scores.

    Raises:
        TypeError: a number is not whole.
        ValueError: a number is out of range, or the scores are of classes.
        StaleArtifactError: `provenance` names another source than the difficulty's.
    """
    if getattr(difficulty, "unit", None) != "sample":
        raise ValueError(
            f"`difficulty` must be scores of samples; got {difficulty!r}. Pass those of `el2n`."
        )
    strata, seed = whole("strata", strata, 1, _MOST_STRATA), whole("seed", seed, 0)
    ranking = difficulty.ranking()
    hardest = int(np.round(_fraction(cutoff) * len(ranking), 6))  # 0.29 of 100 is 29, not 28.999
    hardest = min(hardest, len(ranking) - 1)
    order = np.concatenate(
        (_in_rounds(difficulty.scores, ranking[hardest:], strata, seed), ranking[:hardest][::-1])
    )
    scores = np.empty(len(order), dtype=np.float64)
    scores[order] = np.arange(len(order), 0, -1)
    about = {
        "strata": strata,
        "cutoff": float(cutoff),
        "seed": seed,
        "difficulty": {"method": difficulty.method, "scores": dict(difficulty.provenance)},
    }
    source = one_source("difficulty", (difficulty.provenance, provenance or {}))
    return _of_samples(scores, "ccs", {**about, **(provenance or {}), **source})


def prototype_distance(
    features: ArrayLike,
    clusters: Clusters,
    *,
    prefer: Literal["far", "near"] = "far",
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score samples by their distance to the nearest centroid of a clustering.

    `s[n] = min_k ||g(x_n) - centroids[k]||_2`, or its negative where `prefer` is `near`. (The
    self-supervised prototypes of Sorscher et al. 2022, arXiv 2206.14486: far samples are hard, to
    be kept where data abound, near ones where they are scarce. Their published scores measure
    by the cosine: for that, scale features to unit length before they are clustered.)

    Args:
        features: g of every source sample `(N, D)`, those that were clustered; memory maps are read
            block by block.
        clusters: of these samples.
        prefer: which samples are kept first.
        provenance: kept with the scores.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes do not fit, or a feature is not finite.
        StaleArtifactError: `provenance` names another source than the clusters'.
    """
    values = as_features(features)
    if values.shape != (len(clusters), clusters.centroids.shape[1]):
        raise ValueError(
            f"`features` must be those that were clustered, of shape "
            f"{(len(clusters), clusters.centroids.shape[1])}; got {values.shape}. "
            "Pass these, or cluster yours."
        )
    if prefer not in ("far", "near"):
        raise ValueError(f"`prefer` must be far or near; got {prefer!r}. Choose one.")
    source = one_source("clusters", (clusters.provenance, provenance or {}))
    nearest = [nearest_mean(values[rows], clusters.centroids)[0] for rows in _blocks(values)]
    distances = _distances(values, clusters.centroids, np.concatenate(nearest))
    of_clusters = {"num_clusters": clusters.num_clusters, "sha256": clusters.digest()}
    about = {
        "prefer": prefer,
        "clusters": {**of_clusters, "provenance": dict(clusters.provenance)},
    }
    scores = distances if prefer == "far" else -distances
    return _of_samples(scores, "prototypes", {**about, **(provenance or {}), **source})


def _of_samples(scores: NDArray[np.float64], method: str, provenance: Mapping[str, Any]) -> Scores:
    tie = np.zeros_like(scores)
    return Scores(scores=scores, tie=tie, method=method, unit="sample", provenance=provenance)


def _in_rounds(
    difficulty: NDArray[np.float64], ids: NDArray[np.int64], strata: int, seed: int
) -> NDArray[np.int64]:
    """Return `ids` shuffled within strata of difficulty, one of each stratum in every round."""
    ids = np.random.default_rng(seed).permutation(ids)
    lowest, highest = difficulty[ids].min(), difficulty[ids].max()
    # Halved, so that no range is too wide for a float64.
    width = (highest / 2 - lowest / 2) / strata
    places = np.zeros(len(ids), dtype=np.int64)
    if width > 0:
        places = ((difficulty[ids] / 2 - lowest / 2) / width).astype(np.int64)
    places = np.minimum(places, strata - 1)  # the hardest lies on the upper edge of the last
    grouped = np.argsort(places, kind="stable")
    sizes = np.bincount(places, minlength=strata)
    rounds = np.empty(len(ids), dtype=np.int64)
    rounds[grouped] = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = np.empty(strata, dtype=np.int64)
    turns[np.argsort(sizes, kind="stable")[::-1]] = np.arange(strata)
    return ids[np.lexsort((turns[places], rounds))]


def _medians(
    values: NDArray[np.float64], places: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Return the median `(count,)` of the values of each place; 0 for places without."""
    ordered = values[np.lexsort((values, places))]
    sizes = np.bincount(places, minlength=count)
    present = np.flatnonzero(sizes)
    firsts, sizes = (np.cumsum(sizes) - sizes)[present], sizes[present]
    medians = np.zeros(count, dtype=np.float64)
    medians[present] = (ordered[firsts + (sizes - 1) // 2] + ordered[firsts + sizes // 2]) / 2
    return medians


def _distances(
    values: NDArray[Any], centres: NDArray[Any], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `||values[n] - centres[places[n]]||_2` of each n, in float64."""
    distances = np.empty(len(values), dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _blocks(values):
            gaps = values[rows].astype(np.float64)
            gaps -= centres[places[rows]]
            np.square(gaps, out=gaps)
            distances[rows] = np.sqrt(gaps.sum(axis=1))  # in one order for any block and threads
    if not np.isfinite(distances).all():
        raise ValueError(
            "`features` must be finite, and so must their squares; got others. Check the encoder."
        )
    return distances


def _blocks(values: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (8 * values.shape[1]))
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _labelled(
    name: str, values: ArrayLike, labels: ArrayLike, num_classes: int | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return values `(N, D)` and labels `(N,)`; there are D classes unless a number is given."""
    rows = as_features(values, name)
    count = rows.shape[1] if num_classes is None else check_int("num_classes", num_classes, 1)
    if not len(rows):
        raise ValueError(f"`{name}` must have at least one row; got none. Check the source.")
    ids = as_labels(labels, count)
    if len(ids) != len(rows):
        raise ValueError(
            f"`labels` must have one entry per row of `{name}`; got {len(ids)} labels and "
            f"{len(rows)} rows. Pass the labels of the same samples."
        )
    return rows, ids


def _fraction(cutoff: float) -> float:
    if not isinstance(cutoff, int | float | np.number) or not 0 <= cutoff < 1:
        raise ValueError(
            f"`cutoff` must lie in [0, 1); got {cutoff!r}. Pass the share that is likely wrong."
        )
    return float(cutoff)
