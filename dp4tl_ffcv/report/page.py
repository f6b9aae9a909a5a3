"""Text of the report: checked rows, the summary computed from them, and the HTML page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ..scoring import Scores
from ..stored import check_entries

_NUMBER = int | float
# Types of the entries of `result.json`, of its entry `classes`, and of a stage.
_ENTRIES = {
    "environment": dict[str, Any],
    "seeds": list[int],
    "rows": list[dict[str, Any]],
    "stages": list[dict[str, Any]],
    "definitions": dict[str, str],
    "classes": dict[str, Any],
}
_CLASSES = {
    "source": str,
    "relevant": list[int],
    "scores": dict[str, str],
    "selections": dict[str, str],
}
_STAGE = {"stage": str, "seconds": _NUMBER}
_JSON_TYPES = {float: _NUMBER, float | None: _NUMBER | None, list[float]: list[int | float]}
_LABELS = {"full": "full source", "label_mapping": "LM", "feature_mapping": "FM"}
_SPREAD = "test_accuracy_spread"
_NAME = re.compile(r"\w+")
_POSITIVE = ("keep", "speedup", "speedup_with_selection")  # shown on logarithmic axes
_LARGEST = 1e15  # of the numbers in a result
_TOLERANCE = 1e-9  # rounding must not decide whether equal accuracies count as reached


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of the source classes by one method."""

    method: str
    scores: Scores
    relevant: NDArray[np.bool_]
    """Whether each class is known to be relevant `(C,)`."""

    def best(self, class_names: Sequence[str], count: int) -> list[tuple[str, str, bool]]:
        """Return name, score and relevance of the best `count` classes."""
        scores = self.scores.scores
        best = self.scores.ranking()[:count]
        return [(class_names[i], f"{scores[i]:,.5g}", bool(self.relevant[i])) for i in best]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured run: a method, at a keep, with a finetuning, under a budget."""

    method: str
    keep: float
    finetuning: str
    budget: str
    retained_classes: int
    retained_samples: int
    pretrain_seconds: float
    selection_seconds: float
    speedup: float
    speedup_with_selection: float
    test_accuracy_mean: float
    test_accuracy_spread: float | None
    """None for a single seed."""
    test_accuracies: list[float]
    relevant_share: float
    relevant_found: float


def parse_rows(result: Any) -> list[Row]:
    """Return the rows of a `result.json`.

    Raises:
        ValueError: an entry is missing, of another type or out of range, there are no rows, a
            finetuning has no full run, or no fraction kept occurs in all methods.
    """
    check_entries(result, _ENTRIES)
    classes = check_entries(result["classes"], _CLASSES)
    for method in classes["scores"]:  # part of the name of a file
        if not _NAME.fullmatch(method):
            raise ValueError(f"{method!r} is not the name of a method")
    for stage in result["stages"]:
        _check_numbers(check_entries(stage, _STAGE))
    rows = [_parse_row(row, number) for number, row in enumerate(result["rows"])]
    full = {row.finetuning for row in rows if row.method == "full"}
    if not full or full != {row.finetuning for row in rows}:
        raise ValueError("a finetuning has no row of the full source")
    keeps: dict[str, set[float]] = {}
    for row in rows:
        if row.method != "full":
            keeps.setdefault(row.method, set()).add(row.keep)
    if not keeps or not set.intersection(*keeps.values()):
        raise ValueError("no fraction kept occurs in all methods")
    return rows


def _parse_row(row: Mapping[str, Any], number: int) -> Row:
    types: dict[str, Any] = {field.name: field.type for field in fields(Row)}
    kinds = {name: _JSON_TYPES.get(kind, kind) for name, kind in types.items()}
    try:
        check_entries(row, kinds)
        values = {name: row[name] for name in kinds}
        _check_numbers(values)
    except ValueError as error:
        raise ValueError(f"row {number} is damaged: {error}") from error
    return Row(**values)


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers that no run gives: NaN, too large, or not positive."""
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if not isinstance(number, _NUMBER):
                continue
            is_low = (number <= 0 and name in _POSITIVE) or (number < 0 and name == _SPREAD)
            if is_low or not abs(number) < _LARGEST:
                raise ValueError(f"its entry {name!r} is out of range")


def method_label(method: str) -> str:
    """Return the name of a method for tables and legends."""
    return _LABELS.get(method, method.replace("_", " "))


def full_row(rows: Sequence[Row], finetuning: str) -> Row:
    """Return the full-source run to which the other rows of `finetuning` are compared."""
    return next(row for row in rows if (row.method, row.finetuning) == ("full", finetuning))


def reaches_full(row: Row, full: Row) -> bool:
    """Return whether the row's mean accuracy is at least the full run's mean minus its spread."""
    mark = full.test_accuracy_mean - (full.test_accuracy_spread or 0.0)
    return row.test_accuracy_mean >= mark - _TOLERANCE


def summarise(rows: Sequence[Row]) -> str:
    """Return one paragraph: the smallest fraction at which each method reaches the full run."""
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
        compared: dict[str, list[Row]] = {}
        for row in rows:
            if row.finetuning == finetuning and row.budget == "equal_epochs" and row is not full:
                compared.setdefault(row.method, []).append(row)
        sentences += [_claim(each, full) for each in compared.values()]
    return " ".join([*sentences, _relevance(rows)])


def _claim(rows: Sequence[Row], full: Row) -> str:
    """Say in one sentence whether, where and how fast one method reaches the full run."""
    label = method_label(rows[0].method)
    label = label[:1].upper() + label[1:]
    reached = [row for row in rows if reaches_full(row, full)]
    if not reached:
        best = max(rows, key=lambda row: row.test_accuracy_mean)
        accuracy = _percent(best.test_accuracy_mean)
        return f"{label} never reaches it: its best is {accuracy} at {_share(best.keep)} kept."
    row = min(reached, key=lambda row: row.keep)
    missed = sorted({other.keep for other in rows if other not in reached} - {row.keep})
    above = ", ".join(_share(keep) for keep in missed if keep > row.keep)
    return (
        f"{label} reaches it at {_share(row.keep)} kept ({row.retained_classes:,} classes, "
        f"{_percent(row.test_accuracy_mean)}), where pretraining is {_times(row.speedup)} as fast, "
        f"or {_times(row.speedup_with_selection)} counting the selection"
        + (f"; it misses it at {above} kept." if above else ".")
    )


def _relevance(rows: Sequence[Row]) -> str:
    """Compare the fractions of relevant classes at the smallest fraction that all methods have."""
    shares: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.method != "full":
            shares.setdefault(row.method, {}).setdefault(row.keep, row.relevant_share)
    keep = min(set.intersection(*(set(each) for each in shares.values())))
    found = [f"{_share(each[keep])} for {method_label(m)}" for m, each in shares.items()]
    return (
        f"With {_share(keep)} of the classes kept, the fraction of them that is known to be "
        f"relevant is {', '.join(found)}."
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"


def _plus_minus(value: float | None) -> str:
    return "" if value is None else f" ± {100 * value:.2f}"


def _times(value: float) -> str:
    return f"{value:.2f}\N{MULTIPLICATION SIGN}"


def render(context: Mapping[str, Any]) -> str:
    """Return the HTML page. All values are escaped."""
    source = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=_percent,
        plus_minus=_plus_minus,
        share=_share,
        times=_times,
        seconds="{:,.1f}".format,
        label=method_label,
    )
    return environment.from_string(source).render(context)
