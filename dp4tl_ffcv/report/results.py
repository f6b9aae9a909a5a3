"""Read and check the results of a study for its report."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..stored import check_entries, parse_json, read_json, read_text

FULL = "full"
BUDGETS = ("equal_epochs", "equal_steps")
COSTS = ("surrogate_seconds", "features_seconds", "scoring_seconds", "select_seconds")
_NUMBER = int | float
_PLACE = re.compile(r"\w+/\w+")  # a stage's folder in that of the study
_UNEVEN = 1.25  # largest ratio between the images per second of two runs on an idle machine
_LARGEST = 1e15  # of the numbers in a result
_RULE = {"scored_on": str, "target": str, "mode": str, "budget": str, "method": str}
_RUN = {**_RULE, "keep": _NUMBER | str, "kept": _NUMBER}
_ROW = {
    **_RUN,
    "seed": int,
    "test_accuracy": _NUMBER,
    "classes": int,
    "samples": int,
    "pretrain_seconds": _NUMBER,
    "images_per_second": _NUMBER,
    "pretrained": str,
    "finetuned": str,
    "selection": str | None,
    "scores": str | None,
}
_PLACES = ("pretrained", "finetuned", "selection", "scores")
_ENDS = {
    f"{name}_{end}": _NUMBER | None
    for name in ("accuracy", "full_accuracy", "speedup", "speedup_with_selection")
    for end in ("low", "high")
}
_COMPARISON = {
    **_RUN,
    **_ENDS,
    "seeds": int,
    "classes": _NUMBER,
    "samples": _NUMBER,
    "accuracy": _NUMBER,
    "full_accuracy": _NUMBER,
    "mean": _NUMBER,
    "low": _NUMBER | None,
    "high": _NUMBER | None,
    "missed": _NUMBER | None,
    "verdict": str,
    "clock": str,
    "speedup": _NUMBER,
    "speedup_with_selection": _NUMBER,
    "pretrain_seconds": _NUMBER,
    "full_pretrain_seconds": _NUMBER,
    **dict.fromkeys(COSTS, _NUMBER),
}
_POSITIVE = ("keep", "kept", "samples", "speedup", "speedup_with_selection", "pretrain_seconds",
             "full_pretrain_seconds")  # fmt: skip
_PRUNING = {**_RULE, "pruned": _NUMBER}
_SUMMARY = {
    "command": str,
    "source": str,
    "runs": int,
    "stages": dict[str, dict[str, int]],
    "comparisons": list[dict[str, Any]],
    "prunings": list[dict[str, Any]],
    "environment": dict[str, Any],
    "fewest_seeds": int,
}
_LATER = ("fewest_seeds",)  # which earlier versions did not write

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Rows, comparisons and description of a study, finished or not."""

    folder: Path
    study: Mapping[str, Any]
    """Content of the study file, with defaults."""
    rows: Sequence[Row]
    """One row per finished run."""
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Read the files of a study.

        Raises:
            FileNotFoundError: there is no study in the folder.
            ValueError: a file is damaged.
        """
        path = folder / "config.json"
        try:
            study = check_entries(read_json(path), {"study": dict[str, Any]})["study"]
            path = folder / "summary.json"
            summary = check_entries(read_json(path), _SUMMARY, optional=_LATER)
            for each in summary["comparisons"]:
                _check_numbers(check_entries(each, _COMPARISON))
            for each in summary["prunings"]:
                _check_numbers(check_entries(each, _PRUNING))
            path = folder / "results.jsonl"
            rows = [_row(line) for line in read_text(path).splitlines()]
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: {error}. Run `dp4tl study` again; it repeats no finished run."
            ) from error
        return cls(folder=folder, study=study, rows=rows, summary=summary)

    @property
    def comparisons(self) -> Sequence[Row]:
        """Comparisons of selections with the full source."""
        found: Sequence[Row] = self.summary["comparisons"]
        return found

    @cached_property
    def methods(self) -> list[str]:
        """Methods of the comparisons, in the order of the study."""
        return list(dict.fromkeys(row["method"] for row in self.comparisons))

    @cached_property
    def controls(self) -> set[str]:
        """Methods that select at random."""
        methods = self.study.get("methods")
        return {
            name
            for name, each in (methods if isinstance(methods, dict) else {}).items()
            if isinstance(each, dict) and each.get("method") == "random"
        }

    def groups(self, *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
        """Yield the comparisons with equal values of `names`, in the order of the study."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.comparisons:
            found.setdefault(tuple(row[name] for name in names), []).append(row)
        yield from found.items()


def target_name(row: Row) -> str:
    """Return the target in words: `few of both` is `few`, with scores for `both`."""
    target, scored_on = row["target"], row["scored_on"]
    return str(target if target == scored_on else f"{target} of {scored_on}")


def uneven_rates(rates: Sequence[float]) -> tuple[float, float] | None:
    """Return the lowest and highest images per second of runs if they differ too much."""
    found = [rate for rate in rates if rate > 0]
    if not found or max(found) <= _UNEVEN * min(found):
        return None
    return min(found), max(found)


def _row(line: str) -> Row:
    row = check_entries(parse_json(line), _ROW)
    _check_numbers(row)
    for name in _PLACES:
        if row[name] is not None and not _PLACE.fullmatch(row[name]):
            raise ValueError(f"it names {row[name]!r}, which is no stage of the study")
    return row


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers that no run gives: NaN, too large, or not positive."""
    for name, value in values.items():
        if isinstance(value, _NUMBER) and (
            not abs(value) < _LARGEST or (value <= 0 and name in _POSITIVE)
        ):
            raise ValueError(f"its entry {name!r} is out of range")
