"""The tables of a study, made from its results."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import markdown
from dp4tl_ffcv.report.results import uneven_rates
from train.components.study.results import CLOCKS, comparisons, prunings, speedup_of, target_of

Row = Mapping[str, Any]
ROOT = Path(__file__).resolve().parents[2]
MODES = {
    "linear_probe": "linear probe",
    "full_finetuning": "full finetuning",
}
BUDGETS = {"equal_epochs": "equal epochs", "equal_steps": "equal steps"}


def page(name: str, lines: Sequence[Row]) -> str:
    """Return a Markdown page with the tables of a study.

    Args:
        name: name of the study.
        lines: a head with the `environment`, and the rows of `results.jsonl`.
    """
    head, *rows = lines
    compared = comparisons(rows)
    machine, seeds = head["environment"], len({row["seed"] for row in rows})
    parts = [
        f"# {name}",
        f"`dp4tl study {_file_of(name)}`, {seeds} seeds, on {machine['cores']} cores "
        f"of {machine['cpu']}, GPU: {machine['gpu']}, torch {machine['torch']}. Columns are "
        "fractions kept. A cell has the mean difference to the full source in points of test "
        "accuracy, its 95 % interval, the verdict, and in parentheses the true loss that this "
        "many seeds detect with a chance of about 80 %. *Pruned* is the largest fraction pruned "
        "up to which every tested pruning is without loss. A verdict needs 8 seeds. "
        "[Studies](../../../docs/studies.md) describes the rule.",
        *_accuracies(compared),
        "## Speed-up of pretraining",
        "Time of pretraining on the full source divided by that on the selection, alone / with the "
        "whole cost of the selection: ratios of sums over seeds, with 95 % intervals over seeds "
        f"(paired, t on the logarithms), by {CLOCKS[compared[0]['clock']]}.",
        *_uneven(rows),
        *_speedups(compared),
    ]
    return "\n\n".join(parts) + "\n"


def _file_of(name: str) -> str:
    """Return the study file. That of the demo is installed with the recipes."""
    packaged = f"train/configs/studies/{name}.yaml"
    return packaged if (ROOT / packaged).exists() else f"benchmarks/studies/{name}.yaml"


def _accuracies(compared: Sequence[Row]) -> Iterator[str]:
    """Yield a heading and a table for each target, mode and budget."""
    pruned = prunings(compared)
    for (scored_on, target, mode, budget), rows in _by(
        compared, "scored_on", "target", "mode", "budget"
    ):
        yield f"## {target_of(rows[0])}, {MODES[mode]}, {BUDGETS[budget]}"
        yield f"Full source: {100 * rows[0]['full_accuracy']:.2f} %."
        best = {
            method: f"{share:.0%}"
            for (*place, method), share in pruned.items()
            if place == [scored_on, target, mode, budget]
        }
        yield _table(rows, _difference, {"pruned": best})


def _speedups(compared: Sequence[Row]) -> Iterator[str]:
    """Yield a table for each target that is scored for; all its runs share the pretraining."""
    for (scored_on, budget), rows in _by(compared, "scored_on", "budget"):
        of_one = [row for row in rows if _same(row, rows[0], "target", "mode")]
        yield f"{scored_on}, {BUDGETS[budget]}:"
        yield _table(of_one, _speedup, {})


def _uneven(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a note if the runs' images per second differ too much."""
    if rates := uneven_rates([row["images_per_second"] for row in rows]):
        yield (
            f"**Note:** pretraining ran at {rates[0]:,.0f} to {rates[1]:,.0f} images/s. The "
            "machine was busy with other work, so the times and speed-ups may be wrong by this "
            "factor."
        )


def _table(rows: Sequence[Row], cell: Any, more: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of methods x keeps, with more columns by method."""
    keeps = sorted({str(row["keep"]) for row in rows}, reverse=True)  # auto, 0.6, 0.4
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["method"], {})[str(row["keep"])] = cell(row)
    return markdown(
        ("method", *keeps, *more),
        (
            [
                method.replace("_", " "),
                *(found.get(keep, "") for keep in keeps),
                *(column.get(method, "") for column in more.values()),
            ]
            for method, found in cells.items()
        ),
    )


def _difference(row: Row) -> str:
    low, high, missed = (100 * row[name] for name in ("low", "high", "missed"))
    return (
        f"{_kept(row)}{100 * row['mean']:+.2f} [{low:+.2f}, {high:+.2f}] {row['verdict']} "
        f"({missed:.2f})"
    )


def _speedup(row: Row) -> str:
    return f"{_kept(row)}{speedup_of(row, 'speedup')} / {speedup_of(row, 'speedup_with_selection')}"


def _kept(row: Row) -> str:
    return f"{row['kept']:.2f}: " if row["keep"] == "auto" else ""


def _by(rows: Sequence[Row], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    yield from groups.items()


def _same(row: Row, other: Row, *names: str) -> bool:
    return all(row[name] == other[name] for name in names)
