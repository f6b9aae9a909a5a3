"""Text of the report: checked rows, the summary computed from them, and the HTML page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ..scoring import Scores

_KEYS = ("environment", "seeds", "rows", "stages", "definitions", "classes")
_TEXT = ("method", "finetuning", "budget")
_REQUIRED = ("keep", "retained_classes", "retained_samples", "test_accuracy_mean")
_LABELS = {"full": "full source", "label_mapping": "LM", "feature_mapping": "FM"}
_UNKNOWN = "\N{EN DASH}"
_TOLERANCE = 1e-9  # rounding must not decide whether equal accuracies count as reached


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of the source classes by one method."""

    method: str
    scores: Scores
    relevant: NDArray[np.bool_] | None
    """Classes known to be relevant `(C,)`. None if unknown."""

    def best(self, class_names: Sequence[str], count: int) -> list[tuple[str, str, bool]]:
        """Return name, score and relevance of the best `count` classes."""
        return [
            (
                class_names[each],
                f"{self.scores.scores[each]:,.5g}",
                self.relevant is not None and bool(self.relevant[each]),
            )
            for each in self.scores.ranking()[:count]
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured run: a method, at a keep, with a finetuning, under a budget."""

    method: str
    keep: float
    finetuning: str
    budget: str
    retained_classes: int
    retained_samples: int
    pretrain_seconds: float | None
    selection_seconds: float | None
    speedup: float | None
    speedup_with_selection: float | None
    test_accuracy_mean: float
    test_accuracy_spread: float | None
    test_accuracies: tuple[float, ...]
    relevant_share: float | None
    relevant_found: float | None


def parse_rows(result: Mapping[str, Any]) -> list[Row]:
    """Return the checked rows of a `result.json`.

    Raises:
        ValueError: a key is missing, a value is not a number, or a finetuning has no full run.
    """
    if missing := [key for key in _KEYS if key not in result]:
        raise ValueError(f"it has no {', '.join(missing)}")
    rows = [_parse_row(row, number) for number, row in enumerate(result["rows"])]
    if not rows:
        raise ValueError("it has no rows")
    full = {row.finetuning for row in rows if row.method == "full"}
    if missing := sorted({row.finetuning for row in rows} - full):
        raise ValueError(f"the full source was not trained for {', '.join(missing)}")
    return rows


def _parse_row(row: Mapping[str, Any], number: int) -> Row:
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Row)):
        if name not in row:
            raise ValueError(f"row {number} has no {name}")
        value = row[name]
        if name in _TEXT:
            values[name] = str(value)
        elif name == "test_accuracies":
            values[name] = tuple(_number(each, name, number) for each in value)
        else:
            values[name] = _number(value, name, number, optional=name not in _REQUIRED)
    if not 0 < values["keep"] <= 1:
        raise ValueError(f"row {number} has keep {values['keep']}, which is not in (0, 1]")
    return Row(**values)


def _number(value: object, name: str, number: int, *, optional: bool = False) -> Any:
    """Return a finite number unchanged, and None for a missing one if `optional`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if optional and (value is None or isinstance(value, float)):
        return None  # the spread of a single seed is NaN, or null in JSON
    raise ValueError(f"{name} of row {number} is {value!r} instead of a finite number")


def method_label(method: str) -> str:
    """Return the name of a method for tables and legends."""
    return _LABELS.get(method, method.replace("_", " "))


def full_row(rows: Sequence[Row], finetuning: str) -> Row:
    """Return the full-source run to which the other rows of `finetuning` are compared."""
    full = [row for row in rows if row.method == "full" and row.finetuning == finetuning]
    return min(full, key=lambda row: row.budget != "equal_epochs")


def reaches_full(row: Row, full: Row) -> bool:
    """Return whether the row's mean accuracy is at least the full run's mean minus its spread."""
    mark = full.test_accuracy_mean - (full.test_accuracy_spread or 0.0)
    return row.test_accuracy_mean >= mark - _TOLERANCE


def summarise(rows: Sequence[Row]) -> str:
    """Return one paragraph: the smallest keep of each method that reaches the full run."""
    sentences = []
    for finetuning in dict.fromkeys(row.finetuning for row in rows):
        full = full_row(rows, finetuning)
        spread, seeds = full.test_accuracy_spread, len(full.test_accuracies)
        mark = full.test_accuracy_mean - (spread or 0.0)
        words = finetuning.replace("_", " ")
        sentences.append(
            f"{words[:1].upper()}{words[1:]}: the full source ({full.retained_classes:,} classes, "
            f"{full.retained_samples:,} samples) reaches {_percent(full.test_accuracy_mean)}"
            f"{_plus_minus(spread)} test accuracy over {seeds} seed{'s' * (seeds != 1)}. "
            + ("Its mean minus its spread" if spread is not None else "Its mean, without a spread")
            + f", {_percent(mark)}, is the mark."
        )
        pruned = [
            row
            for row in rows
            if row.finetuning == finetuning
            and row.method != "full"
            and row.budget == "equal_epochs"
        ]
        for method in dict.fromkeys(row.method for row in pruned):
            sentences.append(_claim([row for row in pruned if row.method == method], full))
    return " ".join([*sentences, *_relevance(rows)])


def _claim(rows: Sequence[Row], full: Row) -> str:
    """Say in one sentence whether, where and how fast one method reaches the full run."""
    label = method_label(rows[0].method)
    label = label[0].upper() + label[1:]
    reached = [row for row in rows if reaches_full(row, full)]
    if not reached:
        best = max(rows, key=lambda row: row.test_accuracy_mean)
        accuracy = _percent(best.test_accuracy_mean)
        return f"{label} reaches it at no keep: its best is {accuracy} at keep {best.keep:g}."
    row = min(reached, key=lambda row: row.keep)
    missed = sorted({other.keep for other in rows if other not in reached} - {row.keep})
    above = ", ".join(f"{keep:g}" for keep in missed if keep > row.keep)
    return (
        f"{label} reaches it at keep {row.keep:g} ({row.retained_classes:,} classes, "
        f"{_percent(row.test_accuracy_mean)}), where pretraining is {_times(row.speedup)} as fast, "
        f"or {_times(row.speedup_with_selection)} counting the selection"
        + (f"; it misses it at keep {above}." if above else ".")
    )


def _relevance(rows: Sequence[Row]) -> list[str]:
    """Compare the methods' fractions of relevant classes at the smallest keep that all have."""
    known: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.method != "full" and row.relevant_share is not None:
            known.setdefault(row.method, {}).setdefault(row.keep, row.relevant_share)
    common = set.intersection(*(set(each) for each in known.values())) if known else set()
    if not common:
        return []
    keep = min(common)
    shares = [f"{_share(each[keep])} for {method_label(m)}" for m, each in known.items()]
    return [
        f"At keep {keep:g}, the fraction of the retained classes that are known to be relevant is "
        f"{', '.join(shares)}."
    ]


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.2f}%"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.3g}%"


def _plus_minus(value: float | None) -> str:
    return "" if value is None else f" ± {100 * value:.2f}"


def _times(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def _seconds(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}"


def render(context: Mapping[str, Any]) -> str:
    """Return the HTML page. Everything that is not `Markup` is escaped."""
    source = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=_percent,
        plus_minus=_plus_minus,
        share=_share,
        times=_times,
        seconds=_seconds,
        label=method_label,
    )
    return environment.from_string(source).render(context)
