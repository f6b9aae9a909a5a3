"""Read and check the results of a study for its report."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..stored import check_entries, parse_json, read_json, read_text
from .findings import EVIDENCE, Findings, Row
from .names import AUTO, COSTS

_NUMBER = int | float
_PLACE = re.compile(r"\w+/\w+")  # a stage's folder in that of the study
_LARGEST = 1e15  # of the numbers in a result
_SMALLEST = 1e-15  # of the numbers that are above 0
_ROW = {
    **dict.fromkeys(("scored_on", "target", "mode", "budget", "method"), str),
    "keep": _NUMBER | str,
    "kept": _NUMBER,
    "seed": int,
    "test_accuracy": _NUMBER,
    "classes": int,
    "samples": int,
    "steps": int,
    "pretrain_seconds": _NUMBER,
    "selection_seconds": _NUMBER,
    **dict.fromkeys(COSTS, _NUMBER),
    "images_per_second": _NUMBER,
    **dict.fromkeys(("pretrained", "finetuned"), str),
    **dict.fromkeys(("selection", "scores"), str | None),
}
# Entries of some rows only, or which earlier versions did not write.
_OPTIONAL = {
    "test_images": int,
    "random": str,
    "clock": str,
    "warnings": list[str],
    **dict.fromkeys(EVIDENCE, _NUMBER),
}
_PLACES = ("pretrained", "finetuned", "selection", "scores")
_POSITIVE = ("keep", "kept", "samples", "steps", "pretrain_seconds", "test_images")
_NOT_NEGATIVE = ("selection_seconds", *COSTS)
_SUMMARY = {
    "command": str,
    "source": str,
    "runs": int,
    "stages": dict[str, dict[str, int]],
    "environment": dict[str, Any],
}


@dataclass(frozen=True, kw_only=True)
class Results:
    """Findings and description of a study, finished or not."""

    folder: Path
    study: Mapping[str, Any]
    """Content of the study file, with defaults."""
    summary: Mapping[str, Any]
    findings: Findings

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
            summary = check_entries(read_json(path), _SUMMARY)
            path = folder / "results.jsonl"
            findings = Findings([_row(line) for line in read_text(path).splitlines()])
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: {error}. Run `dp4tl study` again; it repeats no finished run."
            ) from error
        return cls(folder=folder, study=study, summary=summary, findings=findings)


def _row(line: str) -> Row:
    row = check_entries(parse_json(line), {**_ROW, **_OPTIONAL}, optional=_OPTIONAL)
    for name in _PLACES:
        if row[name] is not None and not _PLACE.fullmatch(row[name]):
            raise ValueError(f"it names {row[name]!r}, which is no stage of the study")
    if isinstance(row["keep"], str) and row["keep"] != AUTO:
        raise ValueError(f"its entry 'keep' is neither a fraction nor {AUTO}")
    _check_numbers(row)
    return row


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Raise ValueError for numbers that no run gives: NaN, too large, or below what they can be."""
    for name, value in values.items():
        least = _SMALLEST if name in _POSITIVE else 0 if name in _NOT_NEGATIVE else -_LARGEST
        if isinstance(value, _NUMBER) and not least <= value <= _LARGEST:
            raise ValueError(f"its entry {name!r} is out of range")
