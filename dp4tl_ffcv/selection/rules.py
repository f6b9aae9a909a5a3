"""Rules that turn scores into a selection: of classes, of samples, or of samples within classes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..artifacts import check_fingerprint
from ..beton import BetonIndex
from ..errors import StaleArtifactError
from ..scoring import Scores
from ..scoring.clustering.clusters import Clusters
from ..scoring.combine import How, combine_scores
from .budgets import Budget, one_budget, part_of, share, whole
from .selection import Selection

GivenScores = Scores | str | os.PathLike[str]
Kind = TypeVar("Kind", Scores, Clusters)


def select(  # noqa: PLR0913  # each option is independent, and named at the call
    scores: GivenScores | Sequence[GivenScores],
    beton: BetonIndex | str | os.PathLike[str],
    *,
    keep: float | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
    keep_bytes: int | str | None = None,
    combine: How = "sum",
    weights: Sequence[float] | None = None,
    within: GivenScores | None = None,
    keep_within: float | None = None,
    balanced: bool = False,
    clusters: Clusters | str | os.PathLike[str] | None = None,
    label_field: str = "label",
    out: str | os.PathLike[str] | None = None,
) -> Selection:
    """Retain the best classes, or the best samples, of a beton.

    Give exactly one of the four budgets. Classes (or samples) are taken from the best on, as long
    as they fit. Classes without a sample in the beton are skipped and use up no budget.

    Scores, selections and clusters may be given as paths of their files.

    Order: score descending, then tie-break descending, then id ascending.

    Args:
        scores: scores of the source's classes, pseudo-classes or samples. A list of scores, one
            for each target, is combined by `combine_scores`.
        beton: the source, a path or an open index.
        keep: fraction in (0, 1] of the beton's classes (class scores) or samples (sample scores),
            rounded to the nearest integer, halves up, at least one.
        keep_classes: number of classes; class scores only.
        keep_samples: largest number of retained samples.
        keep_bytes: largest size of the retained samples in bytes, or text such as `20GiB`.
        combine: how several scores are combined: `sum`, `max`, `rank` or `round-robin`.
        weights: weight of each of several scores. None weighs all alike.
        within: sample scores that choose among the samples of each retained class.
        keep_within: fraction in (0, 1] of the samples of each retained class that `within` keeps,
            rounded like `keep`.
        balanced: with sample scores, keep the fraction `keep` of every class.
        clusters: pseudo-classes that the scores belong to, or that `balanced` uses.
        label_field: field of the class ids.
        out: file (`.npz`) to write the selection to.

    Returns:
        The selection. With pseudo-classes, its classes are those of its samples. A beton without
        the default field `label` gives a selection without classes.

    Raises:
        StaleArtifactError: scores or clusters belong to another beton, or the scores to other
            clusters.
        ValueError: not exactly one budget, a value out of range, options that exclude each other,
            or a number of scores or clusters that does not fit the beton.
    """
    index = BetonIndex.of(beton)
    budget = one_budget(
        keep=keep, keep_classes=keep_classes, keep_samples=keep_samples, keep_bytes=keep_bytes
    )
    selection = _select(
        _one_scores(scores, combine, weights),
        index,
        budget,
        within=None if within is None else _loaded(Scores, within),
        keep_within=keep_within,
        balanced=balanced,
        clusters=None if clusters is None else _loaded(Clusters, clusters),
        label_field=label_field,
    )
    if out is not None:
        selection.save(out)
    return selection


def _one_scores(
    scores: GivenScores | Sequence[GivenScores], combine: How, weights: Sequence[float] | None
) -> Scores:
    if isinstance(scores, str) or not isinstance(scores, Sequence):
        scores = [scores]
    loaded = [_loaded(Scores, each) for each in scores]
    if len(loaded) == 1 and not weights:
        return loaded[0]
    return combine_scores(loaded, how=combine, weights=weights)


def _loaded(kind: type[Kind], given: Kind | str | os.PathLike[str]) -> Kind:
    return kind.load(given) if isinstance(given, str | os.PathLike) else given


def _select(
    scores: Scores,
    index: BetonIndex,
    budget: Budget,
    *,
    within: Scores | None,
    keep_within: float | None,
    balanced: bool,
    clusters: Clusters | None,
    label_field: str,
) -> Selection:
    _check_options(scores, budget, within, keep_within, balanced, clusters)
    check_fingerprint(
        "scores", scores.provenance.get("source_fingerprint"), index.fingerprint, index.path
    )
    _check_clusters(clusters, scores, index)
    provenance: dict[str, Any] = {
        "method": scores.method,
        "unit": scores.unit,
        budget.name: budget.value,
        "scores": dict(scores.provenance),
    }
    if within is not None:
        keep_within = share("keep_within", keep_within)
        provenance |= {"keep_within": keep_within, "within": _described(within)}
    if clusters is not None:
        provenance["clusters"] = _described(clusters)
    if scores.unit == "sample":
        provenance |= {"balanced": True} if balanced else {}
        ids = _best_samples(scores, index, budget, balanced, clusters, label_field)
        return _of_samples(index, ids, label_field, provenance)
    if clusters is not None:
        groups = clusters.labels
        counts = np.bincount(groups, minlength=clusters.num_clusters)
    else:
        groups = index.labels(label_field)
        counts = _class_counts(scores, index, label_field)
    inside = None
    if within is not None and keep_within is not None:
        _check_samples("within", within, index)
        inside = _best_of_each(within, groups, counts, keep_within)
    classes = _best_classes(scores, index, budget, groups, counts, inside)
    if clusters is not None:
        provenance["clusters"]["retained"] = np.sort(classes).tolist()
        ids = _members(classes, groups, len(counts), inside)
        return _of_samples(index, ids, label_field, provenance)
    selection = Selection.of_classes(
        index, classes, num_classes=len(scores), label_field=label_field, provenance=provenance
    )
    if inside is None:
        return selection
    return replace(selection, indices=selection.indices[inside[selection.indices]])


def _best_classes(
    scores: Scores,
    index: BetonIndex,
    budget: Budget,
    groups: NDArray[np.int64],
    counts: NDArray[np.int64],
    inside: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Return the best classes within the budget, of which only samples `inside` are retained."""
    ranking = scores.ranking()
    ranking = ranking[counts[ranking] > 0]
    if budget.name in ("keep", "keep_classes"):
        return ranking[: budget.number_of(len(ranking))]
    if budget.name == "keep_samples":
        whole(budget.name, budget.value, index.num_samples)
        weights = np.ones(len(groups), dtype=np.int64)
    else:
        weights = index.sample_bytes()
    if inside is not None:
        weights = weights * inside
    # Exact in the float64 that numpy adds in: no disk has 2**53 bytes.
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
    """Return which samples `(N,)` are of the best share `keep` of their group."""
    ranking = scores.ranking()
    # Numbers of 16 bits are sorted by their digits, at a tenth of the time.
    ranked = groups[ranking].astype(np.min_scalar_type(len(counts)))
    order = ranking[np.argsort(ranked, kind="stable")]
    firsts = np.cumsum(counts) - counts
    positions = np.arange(len(order)) - np.repeat(firsts, counts)
    best = np.zeros(len(order), dtype=np.bool_)
    best[order] = positions < np.repeat(part_of(keep, counts), counts)
    return best


def _members(
    classes: NDArray[np.int64],
    groups: NDArray[np.int64],
    count: int,
    inside: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Return the samples of the retained of `count` groups, ascending."""
    retained = np.zeros(count, dtype=np.bool_)
    retained[classes] = True
    chosen = retained[groups]
    return np.flatnonzero(chosen if inside is None else chosen & inside)


def _of_samples(
    index: BetonIndex, ids: NDArray[np.int64], label_field: str, provenance: Mapping[str, Any]
) -> Selection:
    if label_field == "label" and all(field.name != "label" for field in index.fields):
        # Sources for self-supervised pretraining have none; a field that was named must be there.
        return Selection(
            classes=np.empty(0, dtype=np.int64),
            indices=np.sort(ids),
            label_map=np.empty(0, dtype=np.int64),
            fingerprint=index.fingerprint,
            provenance=provenance,
        )
    return Selection.of_indices(index, ids, label_field=label_field, provenance=provenance)


def _described(given: Scores | Clusters) -> dict[str, Any]:
    if isinstance(given, Scores):
        return {"method": given.method, "scores": dict(given.provenance)}
    about = dict(given.provenance)
    return {"num_clusters": given.num_clusters, "sha256": given.digest(), "provenance": about}


def _class_counts(scores: Scores, index: BetonIndex, label_field: str) -> NDArray[np.int64]:
    """Return the samples of each scored class `(C,)`."""
    counts = index.class_counts(label_field)
    named = bool(index.class_names(label_field))
    if len(counts) > len(scores) or (named and len(counts) != len(scores)):
        raise ValueError(
            f"`scores` must cover the {len(counts)} classes of the beton; got {len(scores)}. "
            "Score the classes of this source."
        )
    return np.concatenate((counts, np.zeros(len(scores) - len(counts), dtype=np.int64)))


def _check_samples(name: str, scores: Scores, index: BetonIndex) -> None:
    check_fingerprint(
        name, scores.provenance.get("source_fingerprint"), index.fingerprint, index.path
    )
    if len(scores) != index.num_samples:
        raise ValueError(
            f"`{name}` must hold one score per sample, {index.num_samples}; got {len(scores)}. "
            "Score the samples of this beton."
        )


def _check_clusters(clusters: Clusters | None, scores: Scores, index: BetonIndex) -> None:
    """Check that the scores are of these pseudo-classes, and they of this beton's samples."""
    made_for = scores.provenance.get("clusters_sha256")
    if clusters is None:
        if made_for is not None and scores.unit == "class":
            raise ValueError(
                f"`clusters` must be given with scores of pseudo-classes; got None for {scores!r}. "
                "Pass the clusters that they were scored with."
            )
        return
    check_fingerprint(
        "clusters", clusters.provenance.get("source_fingerprint"), index.fingerprint, index.path
    )
    if len(clusters) != index.num_samples:
        raise ValueError(
            f"`clusters` must hold one pseudo-class per sample, {index.num_samples}; got "
            f"{len(clusters)}. Cluster the features of this beton."
        )
    if scores.unit == "sample":
        return
    if made_for is not None and made_for != clusters.digest():
        raise StaleArtifactError(
            f"`clusters` must be those that were scored, {made_for[:16]}; got "
            f"{clusters.digest()[:16]}. Pass their file, or score these."
        )
    if len(scores) != clusters.num_clusters:
        raise ValueError(
            f"`scores` must cover the {clusters.num_clusters} pseudo-classes; got {len(scores)}. "
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
    """Refuse options that do not go together."""
    of_samples = scores.unit == "sample"
    if of_samples and budget.name == "keep_classes":
        raise ValueError(
            f"`keep_classes` must not be given with sample scores; got {budget.value}. "
            "Use `keep`, `keep_samples` or `keep_bytes`."
        )
    if (within is None) != (keep_within is None):
        raise ValueError(
            f"`within` and `keep_within` must be given together; got keep_within={keep_within!r} "
            f"and within={within!r}. Pass both or neither."
        )
    if within is not None and (of_samples or within.unit != "sample"):
        raise ValueError(
            f"`within` must be sample scores beside class scores; got {within.unit} scores beside "
            f"{scores.unit} scores. Pass class scores that choose the classes, and sample scores "
            "within them."
        )
    if balanced and (not of_samples or budget.name != "keep"):
        raise ValueError(
            f"`balanced` must be given with sample scores and `keep`; got {scores.unit} scores and "
            f"`{budget.name}`. Leave it out, or pass those."
        )
    if clusters is not None and of_samples and not balanced:
        raise ValueError(
            "`clusters` must be given with class scores, or with `balanced`; got sample scores. "
            "Leave them out."
        )
