"""What a report says: checked rows, the summary computed from them, and the HTML around figures.

Nothing here draws a curve or writes a file: `render` takes finished figures and returns the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

_KEYS = ("environment", "seeds", "rows", "stages", "definitions")
_TEXT = ("method", "finetuning", "budget")
_REQUIRED = ("keep", "retained_classes", "retained_samples", "test_accuracy_mean")
_LABELS = {"full": "full source", "lm": "LM", "fm": "FM"}
_UNKNOWN = "\N{EN DASH}"
_TOP = 15  # classes listed under a histogram: what a reader looks at, without a wall of names
_TOLERANCE = 1e-9  # mean and mark are both rounded sums: equal numbers must count as reached


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactSheet:
    """One picture for each of some kept and some pruned classes."""

    title: str
    """What was selected, for example "lm, keep 0.25"."""
    kept: Sequence[tuple[str, NDArray[np.uint8]]]
    """Class name and image `(H, W, 3)` of each kept class shown; sizes may differ."""
    pruned: Sequence[tuple[str, NDArray[np.uint8]]]
    """The same for pruned classes."""

    def __post_init__(self) -> None:
        """Check every picture's shape and type."""
        for name, image in (*self.kept, *self.pruned):
            if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
                raise ValueError(
                    f"`kept` and `pruned` must hold uint8 images (H, W, 3); got {image.dtype} "
                    f"{image.shape} for class {name!r}. Convert the image to 8-bit RGB."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScores:
    """The scores that one method gave to the source classes."""

    method: str
    """Name of the method, such as "lm"."""
    scores: NDArray[np.float64]
    """Score of each source class `(C,)`."""
    relevant: NDArray[np.bool_] | None
    """Which classes are known to be relevant `(C,)`; None where nobody knows."""

    def __post_init__(self) -> None:
        """Check the shapes and that every score is a number."""
        if self.scores.ndim != 1 or not self.scores.size or not np.isfinite(self.scores).all():
            raise ValueError(
                f"`scores` must be a non-empty vector of finite numbers; got shape "
                f"{self.scores.shape} for {self.method!r}. Give one score for each source class."
            )
        if self.relevant is not None and self.relevant.shape != self.scores.shape:
            raise ValueError(
                f"`relevant` must have the shape of `scores`, {self.scores.shape}; got "
                f"{self.relevant.shape}. Give one flag for each source class, or None."
            )

    def order(self) -> NDArray[np.int64]:
        """Return class ids by rank: score descending, then id ascending, `(C,)`."""
        return np.argsort(-self.scores, kind="stable").astype(np.int64)


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
    """Return the checked rows of a parsed `result.json`.

    Args:
        result: the parsed file: environment, seeds, rows, stages and definitions.

    Raises:
        ValueError: a key is missing, a value is no number, or a finetuning has no full row.
    """
    missing = [key for key in _KEYS if key not in result]
    if missing:
        raise _bad("result", f"have the keys {', '.join(_KEYS)}", f"none of {missing}")
    if not isinstance(result["rows"], Sequence) or not result["rows"]:
        raise _bad("rows", "hold at least one row", repr(result["rows"]))
    rows = [_parse_row(row, number) for number, row in enumerate(result["rows"])]
    for finetuning in dict.fromkeys(row.finetuning for row in rows):
        if not any(row.method == "full" and row.finetuning == finetuning for row in rows):
            rule = "hold a row with method 'full' for each finetuning"
            raise _bad("rows", rule, f"none for {finetuning!r}", "Run the full source as well.")
    return rows


def _parse_row(row: Mapping[str, Any], number: int) -> Row:
    names = [field.name for field in fields(Row)]
    missing = [name for name in names if name not in row]
    if missing:
        raise _bad("rows", f"have every key of a row; row {number} lacks {missing}", repr(row))
    values: dict[str, Any] = {}
    for name in names:
        value = row[name]
        if name in _TEXT:
            values[name] = str(value)
        elif name == "test_accuracies":
            values[name] = tuple(float(_number(each, name, number)) for each in value)
        else:
            values[name] = _number(value, name, number, optional=name not in _REQUIRED)
    if not 0 < values["keep"] <= 1:
        raise _bad("rows", f"have a keep in (0, 1]; row {number} has not", repr(values["keep"]))
    return Row(**values)


def _number(value: object, name: str, number: int, *, optional: bool = False) -> Any:
    """Return a finite number as it is, and None for a missing one where that is allowed."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if optional and (value is None or isinstance(value, float)):
        return None  # JSON's null, and NaN for the spread of a single seed
    raise _bad("rows", f"have finite numbers; row {number}, {name!r} is not one", repr(value))


def _bad(
    name: str, rule: str, got: str, what_to_do: str = "Give the result.json of a finished run."
) -> ValueError:
    return ValueError(f"`{name}` must {rule}; got {got:.300}. {what_to_do}")


def method_label(method: str) -> str:
    """Return the name that tables and legends use for `method`."""
    return _LABELS.get(method, method)


def full_row(rows: Sequence[Row], finetuning: str) -> Row:
    """Return the full-source run that the others with `finetuning` are measured against."""
    full = [row for row in rows if row.method == "full" and row.finetuning == finetuning]
    return min(full, key=lambda row: row.budget != "equal_epochs")


def reaches_full(row: Row, full: Row) -> bool:
    """Return whether the row's mean is at least the full run's mean minus its spread."""
    mark = full.test_accuracy_mean - (full.test_accuracy_spread or 0.0)
    return row.test_accuracy_mean >= mark - _TOLERANCE


def summarise(rows: Sequence[Row]) -> str:
    """Return one paragraph: which smallest keep reaches the full run, and how fast, by method."""
    sentences = []
    for finetuning in dict.fromkeys(row.finetuning for row in rows):
        full = full_row(rows, finetuning)
        spread, seeds = full.test_accuracy_spread, len(full.test_accuracies)
        mark = full.test_accuracy_mean - (spread or 0.0)
        words = finetuning.replace("_", " ")
        sentences.append(
            f"{words[:1].upper()}{words[1:]}: the full source ({full.retained_classes:,} classes, "
            f"{full.retained_samples:,} samples) reaches {_percent(full.test_accuracy_mean)}"
            f"{_plus_minus(spread)} test accuracy over {seeds} seed{'s' * (seeds != 1)}; "
            + ("its mean less its spread" if spread is not None else "its mean, no spread known")
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
        + (f"; it misses it again at keep {above}." if above else ".")
    )


def _relevance(rows: Sequence[Row]) -> list[str]:
    """Compare the methods' shares of relevant classes at the smallest keep that all have."""
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
        f"At keep {keep:g}, the share of the retained classes that are known to be relevant is "
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


def ranked(scores: ClassScores, class_names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Return name, score and known relevance of the first classes by rank."""
    flags = np.zeros(len(scores.scores), bool) if scores.relevant is None else scores.relevant
    return [
        (class_names[index], f"{scores.scores[index]:,.5g}", bool(flags[index]))
        for index in scores.order()[:_TOP]
    ]


def render(context: Mapping[str, Any]) -> str:
    """Return the HTML page; whatever is not marked as finished HTML is escaped."""
    source = files("dp4tl_ffcv.report.report").joinpath("report.html.j2").read_text("utf-8")
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
