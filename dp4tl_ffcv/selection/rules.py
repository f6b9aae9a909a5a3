"""Select classes, samples, or samples within classes, by their scores."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..errors import StaleArtifactError
from ..scoring import Scores
from ..scoring.clustering.clusters import Clusters
from ..scoring.combine import Combine, combine_scores
from ..validate import check_class_names, check_fingerprint, check_fraction, check_int
from .automatic import automatic_keep
from .budgets import Budget, one_budget, part_of
from .selection import Selection, num_classes_of

# Largest part of the votes for outputs that stand for no class. A head of 1,000 outputs trained on
# 80 classes gave them 0.5 % of the soft votes after 30 steps, 0.01 % after 3,000, untrained 91 %.
_OTHER_OUTPUTS = 0.01

ScoresLike = Scores | str | os.PathLike[str]


def select(  # noqa: PLR0913  # options are named at the call
    scores: ScoresLike | Sequence[ScoresLike],
    beton: BetonIndex | str | os.PathLike[str],
    *,
    keep: float | Literal["auto"] | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
    keep_bytes: int | str | None = None,
    min_score: float | None = None,
    combine: Combine = "sum",
    weights: Sequence[float] | None = None,
    within: ScoresLike | None = None,
    keep_within: float | None = None,
    balanced: bool = False,
    clusters: Clusters | str | os.PathLike[str] | None = None,
    label_field: str = "label",
    out: str | os.PathLike[str] | None = None,
) -> Selection:
    """Retain the best classes, or the best samples, of a beton.

    Give exactly one budget: one of the four `keep` arguments, or `min_score`. The best classes (or
    samples) that fit into the budget are retained: score descending, then tie-break score
    descending, then id ascending. Classes without samples are skipped and use no budget.
    `keep_samples` and `keep_bytes` count the samples that `within` leaves.

    Args:
        scores: scores of the source's classes, pseudo-classes or samples, or the path of their
            file; or a list of scores, for example one per target, to combine.
        beton: the source.
        keep: fraction in (0, 1] of the beton's classes (class scores) or samples (sample scores),
            rounded to the nearest integer, halves up, at least one. `"auto"`: the smallest
            multiple of 0.01 from 0.2 on that surely covers 95 % of the target's images, by their
            votes (label_mapping, feature_mapping); with several targets, of each target. The
            provenance records the coverage of some fractions, and its lower bound, as `automatic`.
            The votes are assumed to make sense. All classes are kept, with a warning, if the images
            are too few or labels show that their votes say too little.
        keep_classes: number of classes; class scores only.
        keep_samples: with class scores, the best classes that together have at most this many
            samples; with sample scores, this many samples.
        keep_bytes: largest size of the retained samples in bytes, or text such as `20GiB`.
        min_score: retain all classes or samples with at least this score.
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
            clusters, or by a surrogate whose classes have other names than the beton's.
    """
    budget = one_budget(
        keep=keep,
        keep_classes=keep_classes,
        keep_samples=keep_samples,
        keep_bytes=keep_bytes,
        min_score=min_score,
    )
    index, parts = BetonIndex.of(beton), _loaded(scores)
    combined = partial(_combined, combine=combine, weights=weights)
    ranked = combined(parts)
    inner = None if within is None else Scores.of(within)
    pseudo = None if clusters is None else Clusters.of(clusters)
    _check_options(ranked, budget, inner, keep_within, balanced, pseudo)
    _check_source(index, label_field, scores=ranked, clusters=pseudo, within=inner)
    if ranked.unit == "class" and pseudo is None:
        ranked = _of_classes(ranked, index, label_field)
    groups = _groups(ranked, index, pseudo, balanced, label_field)
    if budget.name == "keep_samples":
        check_int(budget.name, budget.value, 1, index.num_samples)
    evidence = None
    if budget.value == "auto":
        among = np.bincount(groups, minlength=len(parts[0])) > 0
        keep, evidence = automatic_keep(parts, combined, among)
        budget = Budget("keep", keep)
    share = None if inner is None else check_fraction("keep_within", keep_within)
    provenance = _provenance(ranked, budget, inner, share, pseudo)
    if evidence is not None:
        provenance["automatic"] = evidence
    retained = np.ones(len(groups), dtype=np.bool_)
    if balanced:
        provenance["balanced"] = True
        retained = _best_of_each(ranked, groups, budget.value)
    elif inner is not None and share is not None:
        retained = _best_of_each(inner, groups, share)
    if not balanced:
        best = _best_groups(ranked, index, budget, groups, retained)
        retained &= best[groups]
        if pseudo is not None:
            provenance["clusters"]["retained"] = np.flatnonzero(best).tolist()
    selection = Selection.of_indices(
        index,
        np.flatnonzero(retained),
        num_classes=len(ranked) if ranked.unit == "class" and pseudo is None else None,
        label_field=label_field,
        provenance=provenance,
    )
    if out is not None:
        selection.save(out)
    return selection


def _loaded(scores: ScoresLike | Sequence[ScoresLike]) -> list[Scores]:
    several = [scores] if isinstance(scores, Scores | str | os.PathLike) else scores
    return [Scores.of(one) for one in several]


def _combined(parts: Sequence[Scores], combine: Combine, weights: Sequence[float] | None) -> Scores:
    if len(parts) == 1 and not weights:
        return parts[0]
    return combine_scores(parts, combine=combine, weights=weights or None)


def _provenance(
    scores: Scores,
    budget: Budget,
    within: Scores | None,
    keep_within: float | None,
    clusters: Clusters | None,
) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "method": scores.method,
        "unit": scores.unit,
        budget.name: budget.value,
        "scores": dict(scores.provenance),
    }
    if within is not None:
        about = {"method": within.method, "scores": dict(within.provenance)}
        provenance |= {"keep_within": keep_within, "within": about}
    if clusters is not None:
        provenance["clusters"] = clusters.described()
    return provenance


def _best_groups(
    scores: Scores,
    index: BetonIndex,
    budget: Budget,
    groups: NDArray[np.int64],
    counted: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return which groups, classes or single samples, fit into the budget, the best first.

    `groups` holds the group of each sample; a budget of samples or bytes counts only some samples.
    """
    costs = np.bincount(groups, minlength=len(scores))
    ranking = scores.ranking()
    ranking = ranking[costs[ranking] > 0]
    if budget.name in ("keep_samples", "keep_bytes"):
        weights = counted * (index.sample_bytes() if budget.name == "keep_bytes" else 1)
        # bincount's float64 is exact up to 2**53 bytes.
        costs = np.bincount(groups, weights, minlength=len(scores)).astype(np.int64)
    best = np.zeros(len(scores), dtype=np.bool_)
    number = budget.number_of(scores.scores[ranking], costs[ranking], scores.unit)
    best[ranking[:number]] = True
    return best


def _best_of_each(scores: Scores, groups: NDArray[np.int64], keep: float) -> NDArray[np.bool_]:
    """Return whether each sample `(N,)` is among the best fraction `keep` of its group."""
    counts, ranking = np.bincount(groups), scores.ranking()
    # numpy's radix sort of 16-bit integers takes a tenth of the time.
    ranked = groups[ranking].astype(np.min_scalar_type(len(counts)))
    order = ranking[np.argsort(ranked, kind="stable")]
    firsts = np.cumsum(counts) - counts
    positions = np.arange(len(order)) - np.repeat(firsts, counts)
    best = np.zeros(len(order), dtype=np.bool_)
    best[order] = positions < np.repeat(part_of(keep, counts), counts)
    return best


def _check_source(index: BetonIndex, label_field: str, **given: Scores | Clusters | None) -> None:
    for name, made in given.items():
        if made is None:
            continue
        fingerprint = made.provenance.get("source_fingerprint")
        check_fingerprint(name, fingerprint, index.fingerprint, index.path)
        of_classes = isinstance(made, Scores) and made.unit == "class"
        if not of_classes and len(made) != index.num_samples:
            raise ValueError(
                f"the beton has {index.num_samples} samples, but `{name}` covers {len(made)}. Make "
                f"`{name}` for this beton."
            )
        if isinstance(made, Scores) and not (of_classes and given["clusters"]):
            check_class_names(
                made.class_names,
                # Samples are scored by the field `label`.
                index.class_names(label_field if of_classes else "label"),
                where=f"the surrogate of `{name}`",
                elsewhere=repr(str(index.path)),
                advice="Score with a surrogate of this source's classes, in the same order. If "
                "only the spelling differs, see `class_names` in docs/guide.md.",
            )


def _groups(
    scores: Scores,
    index: BetonIndex,
    clusters: Clusters | None,
    balanced: bool,
    label_field: str,
) -> NDArray[np.int64]:
    """Return each sample's group: its class, its pseudo-class, or the sample itself.

    Check that class scores cover the classes.
    """
    if scores.unit == "sample":
        if not balanced:
            return np.arange(index.num_samples)
        return index.labels(label_field) if clusters is None else clusters.labels
    made_for = scores.provenance.get("clusters_sha256")
    if clusters is not None:
        if made_for is not None and made_for != clusters.digest():
            raise StaleArtifactError(
                "the scores were made with other clusters. Pass the clusters that were scored."
            )
        if len(scores) != clusters.num_clusters:
            raise ValueError(
                f"there are {clusters.num_clusters} pseudo-classes, but `scores` cover "
                f"{len(scores)}. Score these clusters."
            )
        return clusters.labels
    if made_for is not None:
        raise ValueError("the scores are for pseudo-classes. Pass their `clusters`.")
    return index.labels(label_field)


def _of_classes(scores: Scores, index: BetonIndex, label_field: str) -> Scores:
    """Return the scores of a named source's classes; ignore outputs that stand for no class.

    A surrogate may have been trained on C classes with more than C outputs. Its predictions then
    avoid the extra outputs. A surrogate of another source would use them.
    """
    if scores.provenance.get("clusters_sha256") is not None:
        return scores  # refused with the reason
    count = num_classes_of(index, index.labels(label_field), label_field)
    if count == len(scores) or (count < len(scores) and not index.class_names(label_field)):
        return scores
    others = scores.scores[count:]
    total = scores.scores.sum()
    is_votes = (scores.scores >= 0).all() and total > 0
    if count > len(scores) or not is_votes or others.sum() > _OTHER_OUTPUTS * total:
        found = f", {others.sum() / total:.1%} of them for other outputs" if is_votes else ""
        raise ValueError(
            f"the beton has {count} classes, but `scores` cover {len(scores)}{found}. Score the "
            "classes of this beton."
        )
    warnings.warn(
        f"`scores` cover {len(scores)} classes, and the beton has {count}. The scores from class "
        f"{count} on, {others.sum() / total:.1%} of all, are ignored. This is right only if the "
        f"surrogate was trained on these {count} classes.",
        stacklevel=3,
    )
    names = ("scores", "tie_break", "class_names")
    return replace(scores, **{name: getattr(scores, name)[:count] for name in names})


def _check_options(
    scores: Scores,
    budget: Budget,
    within: Scores | None,
    keep_within: float | None,
    balanced: bool,
    clusters: Clusters | None,
) -> None:
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
            "`scores` must be class scores and `within` sample scores; got "
            f"{scores.unit} scores and {within.unit} scores."
        )
    if balanced and not of_samples:
        raise ValueError("`balanced` needs sample scores; `scores` holds class scores.")
    if balanced and budget.name != "keep":
        raise ValueError(f"`balanced` needs `keep`, a fraction of each class; got `{budget.name}`.")
    if clusters is not None and of_samples and not balanced:
        raise ValueError("with sample scores, `clusters` have no effect without `balanced`.")
