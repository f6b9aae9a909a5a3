"""Learning curves of a study's runs, from their logs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..stored import read_text
from .findings import Row, target_name
from .names import AUTO
from .results import Results

_MACHINE = ("cpu", "cores", "gpu", "python", "torch", "ffcv", "numba", "dp4tl_ffcv")


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of a number that runs log at each epoch."""

    steps: NDArray[np.float64]
    """Steps `(n,)`."""
    values: NDArray[np.float64]
    """Values `(n,)`."""


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Learning curves by target, budget, fraction kept and mode, and the machines of the runs."""

    curves: Mapping[tuple[str, str, Any, str], Mapping[str, Curve]]
    """Curves by method. The mode is `pretraining` for the loss of pretraining."""
    machines: Sequence[Mapping[str, Any]]
    """Descriptions of the machines and versions that runs were made with, without repetitions."""


@dataclass
class _Reader:
    """Reads each log once, although several runs share a pretraining."""

    folder: Path
    read: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        if stage not in self.read:
            self.read[stage] = found = _rows(self.folder / stage / "run" / "log.jsonl")
            for row in found:
                if row.get("event") in ("start", "resume"):
                    machine = {name: row[name] for name in _MACHINE if name in row}
                    self.machines.setdefault(json.dumps(machine), machine)
        return self.read[stage]

    def points(self, stage: str, name: str) -> list[tuple[float, float]]:
        return [
            (row["step"], row[name])
            for row in self.rows(stage)
            if row.get("event") == "epoch"
            and _is_number(row.get(name))
            and _is_number(row.get("step"))
        ]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a log. A log that is missing or damaged only lacks curves."""
    rows = []
    with suppress(OSError, ValueError):
        for line in read_text(path).splitlines():
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows


def logs_of(results: Results) -> Logs:
    """Read the logs of all finished runs."""
    reader = _Reader(results.folder)
    points: dict[tuple[str, str, Any, str], dict[str, list[list[tuple[float, float]]]]] = {}
    for row in results.findings.rows:
        for mode, stage, name in _curves_of(row):
            if found := reader.points(stage, name):
                key = target_name(row), row["budget"], row["keep"], mode
                points.setdefault(key, {}).setdefault(row["method"], []).append(found)
    curves = {
        key: {method: _mean(lists) for method, lists in by_method.items()}
        for key, by_method in points.items()
    }
    return Logs(curves=curves, machines=list(reader.machines.values()))


def _curves_of(row: Row) -> list[tuple[str, str, str]]:
    if row["keep"] == AUTO:  # seeds keep different fractions, for different numbers of steps
        return []
    return [
        ("pretraining", row["pretrained"], "loss"),
        (row["mode"], row["finetuned"], "val_accuracy"),
    ]


def _mean(lists: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """Return the mean at the steps of the first list, where all have a value."""
    shortest = min(len(each) for each in lists)
    values = np.array([[value for _, value in each[:shortest]] for each in lists], dtype=float)
    steps = np.array([step for step, _ in lists[0][:shortest]], dtype=float)
    return Curve(steps, values.mean(0))
