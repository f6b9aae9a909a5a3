"""Rules that turn scores into a selection: a fraction, a number of classes, a budget of samples."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import check_fingerprint
from ..beton import BetonIndex
from ..scoring import Scores
from .selection import Selection

__all__ = ["select"]


def select(
    scores: Scores,
    index: BetonIndex,
    *,
    keep: float | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
    label_field: str = "label",
) -> Selection:
    """Retain the best classes, or the best samples, of a beton.

    Exactly one of the three budgets is given. Classes without a sample in the beton are passed
    over and do not use up the budget.

    Args:
        scores: of the source's classes or samples.
        index: the source's beton.
        keep: fraction in (0, 1] of the beton's classes (class scores) or samples (sample scores),
            rounded to the nearest whole number, halves up, at least one.
        keep_classes: number of classes; class scores only.
        keep_samples: with class scores, the best classes whose samples together number at most
            this many; with sample scores, that many samples.
        label_field: field of the class ids.

    Raises:
        StaleArtifactError: the scores were made for another beton.
        ValueError: not exactly one budget, or one out of range; a score count that does not fit.

    Order: score descending, then tie key descending, then id ascending.
    """
    given = {"keep": keep, "keep_classes": keep_classes, "keep_samples": keep_samples}
    budget: dict[str, Any] = {
        name: value.item() if isinstance(value, np.generic) else value  # as JSON can keep it
        for name, value in given.items()
        if value is not None
    }
    if len(budget) != 1:
        raise ValueError(
            "`keep`, `keep_classes`, `keep_samples`: exactly one must be given; got "
            f"{sorted(budget) or 'none'}. Choose one budget."
        )
    check_fingerprint("scores", scores.provenance.get("source_fingerprint"), index.fingerprint)
    provenance = {
        "method": scores.method,
        "unit": scores.unit,
        **budget,
        "scores": dict(scores.provenance),
    }
    if scores.unit == "sample":
        chosen = _best_samples(scores, index, **budget)
        return Selection.of_indices(index, chosen, label_field=label_field, provenance=provenance)
    classes = _best_classes(scores, index, label_field, **budget)
    return Selection.of_classes(
        index, classes, num_classes=len(scores), label_field=label_field, provenance=provenance
    )


def _best_classes(
    scores: Scores,
    index: BetonIndex,
    label_field: str,
    keep: float | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
) -> NDArray[np.int64]:
    counts = index.class_counts(label_field)
    named = bool(index.class_names(label_field))
    if len(counts) > len(scores) or (named and len(counts) != len(scores)):
        raise ValueError(
            f"`scores` must cover the {len(counts)} classes of the beton; got {len(scores)}. "
            "Score the classes of this source."
        )
    counts = np.concatenate((counts, np.zeros(len(scores) - len(counts), dtype=np.int64)))
    ranking = scores.ranking()
    ranking = ranking[counts[ranking] > 0]
    if keep_samples is not None:
        fitting = np.cumsum(counts[ranking]) <= _whole(
            "keep_samples", keep_samples, index.num_samples
        )
        if not fitting[0]:
            raise ValueError(
                f"`keep_samples` must hold the best class, of {counts[ranking[0]]} samples; got "
                f"{keep_samples}. Raise it."
            )
        return ranking[fitting]
    return ranking[: _number(keep, keep_classes, len(ranking), "keep_classes")]


def _best_samples(
    scores: Scores,
    index: BetonIndex,
    keep: float | None = None,
    keep_classes: int | None = None,
    keep_samples: int | None = None,
) -> NDArray[np.int64]:
    if keep_classes is not None:
        raise ValueError(
            f"`keep_classes` must not be given with sample scores; got {keep_classes}. "
            "Use `keep` or `keep_samples`."
        )
    if len(scores) != index.num_samples:
        raise ValueError(
            f"`scores` must hold one score per sample, {index.num_samples}; got {len(scores)}. "
            "Score the samples of this beton."
        )
    return scores.ranking()[: _number(keep, keep_samples, len(scores), "keep_samples")]


def _number(keep: float | None, count: int | None, total: int, name: str) -> int:
    """Turn a fraction or a count into a number of items out of `total`."""
    if count is not None:
        return _whole(name, count, total)
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise ValueError(
            f"`keep` must lie in (0, 1]; got {keep!r}. Pass the fraction to retain, such as 0.4."
        )
    exact = round(keep * total, 6)  # 0.145 of 100 is 14.5, though not in binary
    return max(1, math.floor(exact + 0.5))


def _whole(name: str, value: Any, total: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int; got {value!r}. Pass a whole number.")
    if not 1 <= value <= total:
        raise ValueError(
            f"`{name}` must lie in [1, {total}]; got {value}. Retain no more than there is."
        )
    return value
