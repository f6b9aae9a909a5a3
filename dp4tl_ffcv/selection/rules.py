"""Select classes, samples, or samples within classes, by their scores."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import check_fingerprint
from ..beton import BetonIndex
from ..errors import StaleArtifactError
from ..scoring import Scores
from ..scoring.clustering.clusters import Clusters
from ..scoring.combine import How, combine_scores
from ..validate import check_fraction, check_int
from .budgets import Budget, one_budget, part_of
from .selection import Selection

ScoresLike = Scores | str | os.PathLike[str]


def select(  # noqa: PLR0913  # options are named at the call
    scores: ScoresLike | Sequence[ScoresLike],
    beton: BetonIndex | str | os.PathLike[str],
    *,
    keep: float | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
    keep_bytes: int | str | None = None,
    combine: How = "sum",
    weights: Sequence[float] | None = None,
    within: ScoresLike | None = None,
    keep_within: float | None = None,
    balanced: bool = False,
    clusters: Clusters | str | os.PathLike[str] | None = None,
    label_field: str = "label",
    out: str | os.PathLike[str] | None = None,
) -> Selection:
    """Retain the best classes, or the best samples, of a beton.

    Give exactly one of the four `keep` budgets. The best classes (or samples) that fit into the
    budget are retained: score descending, then tie-break score descending, then id ascending.
    Classes without samples are skipped and use no budget. `keep_samples` and `keep_bytes` count the
    samples that `within` leaves.

    Args:
        scores: scores of the source's classes, pseudo-classes or samples, or the path of their
            file; or a list of scores, for example one per target, to combine.
        beton: the source.
        keep: fraction in (0, 1] of the beton's classes (class scores) or samples (sample scores),
            rounded to the nearest integer, halves up, at least one.
        keep_classes: number of classes; class scores only.
        keep_samples: with class scores, the best classes that together have at most this many
            samples; with sample scores, this many samples.
        keep_bytes: largest size of the retained samples in bytes, or text such as `20GiB`.
        combine: how to combine several scores, see `combine_scores`.
        weights: weight of each of several scores. Default: all equal.
        within: sample scores that choose samples within each retained class.
        keep_within: fraction in (0, 1] of the samples of each retained class to keep by `within`,
            rounded like `keep`.
        balanced: with sample scores, apply `keep` to each class separately.
        clusters: pseudo-classes that `scores` refer to, or that `balanced` uses instead of classes.
        label_field: integer field with the class ids.
        out: file (`.npz`) to write the selection to.

    Returns:
        The selection. With pseudo-classes, its classes are the classes of the retained samples. If
        the beton has no field `label`, it has no classes.

    Raises:
        StaleArtifactError: scores or clusters were made for another beton, or the scores for other
            clusters.
    """
    budget = one_budget(
        keep=keep, keep_classes=keep_classes, keep_samples=keep_samples, keep_bytes=keep_bytes
    )
    index, ranked = BetonIndex.of(beton), _combined(scores, combine, weights)
    inner = None if within is None else Scores.of(within)
    groups = None if clusters is None else Clusters.of(clusters)
    _check_options(ranked, budget, inner, keep_within, balanced, groups)
    _check_source("scores", ranked, index)
    _check_clusters(groups, ranked, index)
    provenance: dict[str, Any] = {
        "method": ranked.method,
        "unit": ranked.unit,
        budget.name: budget.value,
        "scores": dict(ranked.provenance),
    }
    if inner is not None:
        keep_within = check_fraction("keep_within", keep_within)
        about = {"method": inner.method, "scores": dict(inner.provenance)}
        provenance |= {"keep_within": keep_within, "within": about}
    if groups is not None:
        provenance["clusters"] = groups.described()
    if ranked.unit == "sample":
        provenance |= {"balanced": True} if balanced else {}
        ids = _best_samples(ranked, index, budget, balanced, groups, label_field)
        selection = _of_samples(index, ids, label_field, provenance)
    else:
        selection = _by_classes(
            ranked, index, budget, inner, keep_within, groups, label_field, provenance
        )
    if out is not None:
        selection.save(out)
    return selection


def _combined(
    scores: ScoresLike | Sequence[ScoresLike], how: How, weights: Sequence[float] | None
) -> Scores:
    several = [scores] if isinstance(scores, Scores | str | os.PathLike) else scores
    loaded = [Scores.of(one) for one in several]
    if len(loaded) == 1 and not weights:
        return loaded[0]
    return combine_scores(loaded, how=how, weights=weights or None)


def _by_classes(
    scores: Scores,
    index: BetonIndex,
    budget: Budget,
    within: Scores | None,
    keep_within: float | None,
    clusters: Clusters | None,
    label_field: str,
    provenance: dict[str, Any],
) -> Selection:
    if clusters is not None:
        groups = clusters.labels
        counts = np.bincount(groups, minlength=clusters.num_clusters)
    else:
        groups = index.labels(label_field)
        counts = _class_counts(scores, index, label_field)
    inside = np.ones(len(groups), dtype=np.bool_)
    if within is not None and keep_within is not None:
        _check_samples("within", within, index)
        inside = _best_of_each(within, groups, counts, keep_within)
    classes = _best_classes(scores, index, budget, groups, counts, inside)
    if clusters is not None:
        provenance["clusters"]["retained"] = np.sort(classes).tolist()
        ids = np.flatnonzero(np.isin(groups, classes) & inside)
        return _of_samples(index, ids, label_field, provenance)
    selection = Selection.of_classes(
        index, classes, num_classes=len(scores), label_field=label_field, provenance=provenance
    )
    if within is None:
        return selection
    return replace(selection, indices=selection.indices[inside[selection.indices]])


def _best_classes(
    scores: Scores,
    index: BetonIndex,
    budget: Budget,
    groups: NDArray[np.int64],
    counts: NDArray[np.int64],
    inside: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the best classes within the budget, which counts only samples `inside`."""
    ranking = scores.ranking()
    ranking = ranking[counts[ranking] > 0]
    if budget.name in ("keep", "keep_classes"):
        return ranking[: budget.number_of(len(ranking))]
    weights: NDArray[Any] = inside
    if budget.name == "keep_samples":
        check_int(budget.name, budget.value, 1, index.num_samples)
    else:
        weights = index.sample_bytes() * inside
    # bincount's float64 is exact up to 2**53 bytes.
    costs = np.bincount(groups, weights, minlength=len(counts)).astype(np.int64)
    return ranking[: budget.first_that_fit(costs[ranking], "class")]


def _best_samples(
    scores: Scores,
    index: BetonIndex,
    budget: Budget,
    balanced: bool,
    clusters: Clusters | None,
    label_field: str,
) -> NDArray[np.int64]:
    _check_samples("scores", scores, index)
    if balanced:
        groups = index.labels(label_field) if clusters is None else clusters.labels
        return np.flatnonzero(_best_of_each(scores, groups, np.bincount(groups), budget.value))
    ranking = scores.ranking()
    if budget.name == "keep_bytes":
        sizes = index.sample_bytes()[ranking]
        return ranking[: budget.first_that_fit(sizes, "sample")]
    return ranking[: budget.number_of(len(ranking))]


def _best_of_each(
    scores: Scores, groups: NDArray[np.int64], counts: NDArray[np.int64], keep: float
) -> NDArray[np.bool_]:
    """Return whether each sample `(N,)` is among the best fraction `keep` of its group."""
    ranking = scores.ranking()
    # numpy's radix sort of 16-bit integers takes a tenth of the time.
    ranked = groups[ranking].astype(np.min_scalar_type(len(counts)))
    order = ranking[np.argsort(ranked, kind="stable")]
    firsts = np.cumsum(counts) - counts
    positions = np.arange(len(order)) - np.repeat(firsts, counts)
    best = np.zeros(len(order), dtype=np.bool_)
    best[order] = positions < np.repeat(part_of(keep, counts), counts)
    return best


def _of_samples(
    index: BetonIndex, ids: NDArray[np.int64], label_field: str, provenance: Mapping[str, Any]
) -> Selection:
    if label_field != "label" or any(field.name == "label" for field in index.fields):
        return Selection.of_indices(index, ids, label_field=label_field, provenance=provenance)
    # Sources for self-supervised pretraining have no labels.
    return Selection(
        classes=np.empty(0, dtype=np.int64),
        indices=np.sort(ids),
        label_map=np.empty(0, dtype=np.int64),
        fingerprint=index.fingerprint,
        provenance=provenance,
    )


def _class_counts(scores: Scores, index: BetonIndex, label_field: str) -> NDArray[np.int64]:
    """Return the number of samples of each scored class `(C,)`."""
    counts = index.class_counts(label_field)
    named = bool(index.class_names(label_field))
    if len(counts) > len(scores) or (named and len(counts) != len(scores)):
        raise ValueError(
            f"the beton has {len(counts)} classes, but `scores` cover {len(scores)}. Score the "
            "classes of this beton."
        )
    return np.concatenate((counts, np.zeros(len(scores) - len(counts), dtype=np.int64)))


def _check_source(name: str, made: Scores | Clusters, index: BetonIndex) -> None:
    fingerprint = made.provenance.get("source_fingerprint")
    check_fingerprint(name, fingerprint, index.fingerprint, index.path)


def _check_samples(name: str, made: Scores | Clusters, index: BetonIndex) -> None:
    _check_source(name, made, index)
    if len(made) != index.num_samples:
        raise ValueError(
            f"the beton has {index.num_samples} samples, but `{name}` covers {len(made)}. Make "
            f"`{name}` for this beton."
        )


def _check_clusters(clusters: Clusters | None, scores: Scores, index: BetonIndex) -> None:
    """Check that the clusters are for this beton, and the scores for these clusters."""
    made_for = scores.provenance.get("clusters_sha256")
    if clusters is None:
        if made_for is not None and scores.unit == "class":
            raise ValueError("the scores are for pseudo-classes. Pass their `clusters`.")
        return
    _check_samples("clusters", clusters, index)
    if scores.unit == "sample":
        return
    if made_for is not None and made_for != clusters.digest():
        raise StaleArtifactError(
            "the scores were made with other clusters. Pass the clusters that were scored."
        )
    if len(scores) != clusters.num_clusters:
        raise ValueError(
            f"there are {clusters.num_clusters} pseudo-classes, but `scores` cover {len(scores)}. "
            "Score these clusters."
        )


def _check_options(
    scores: Scores,
    budget: Budget,
    within: Scores | None,
    keep_within: float | None,
    balanced: bool,
    clusters: Clusters | None,
) -> None:
    """Reject options that do not fit together."""
    of_samples = scores.unit == "sample"
    if of_samples and budget.name == "keep_classes":
        raise ValueError(
            "`keep_classes` needs class scores; got sample scores. Use `keep`, `keep_samples` or "
            "`keep_bytes`."
        )
    if (within is None) != (keep_within is None):
        raise ValueError("`within` and `keep_within` go together. Pass both or neither.")
    if within is not None and (of_samples or within.unit != "sample"):
        raise ValueError(
            f"`within` needs class scores for `scores` and sample scores for `within`; got "
            f"{scores.unit} scores and {within.unit} scores."
        )
    if balanced and (not of_samples or budget.name != "keep"):
        raise ValueError(
            f"`balanced` needs sample scores and `keep`; got {scores.unit} scores and "
            f"`{budget.name}`."
        )
    if clusters is not None and of_samples and not balanced:
        raise ValueError("with sample scores, `clusters` have no effect without `balanced`.")
