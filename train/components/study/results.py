"""The results of a study: one row per run, and one comparison per selection rule."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dp4tl_ffcv.utils import atomic_open

from ...configs.study import AUTO
from .plan import FULL, Run
from .rule import Comparison, compare, largest_pruning
from .stages import Stage, with_needs

Row = Mapping[str, Any]
_GROUP = ("scored_on", "target", "mode", "budget", "method", "keep")
_PAIRED = ("target", "mode", "budget", "seed")  # equal for a run and its full run


def rows_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a row for each finished run, in the order of the plan."""
    results: dict[str, dict[str, Any] | None] = {}

    def result_of(stage: Stage) -> dict[str, Any] | None:
        if stage.key not in results:
            results[stage.key] = stage.result()
        return results[stage.key]

    rows = []
    for run in runs:
        tuned, trained = result_of(run.finetuned), result_of(run.pretrained)
        if tuned is None or trained is None:
            continue
        rows.append(
            {
                **run.about,
                "test_accuracy": tuned["test_accuracy"],
                "kept": _kept(run, result_of),
                "classes": trained["retained_classes"],
                "samples": trained["retained_samples"],
                "steps": trained["steps"],
                "pretrain_seconds": trained["pretrain_seconds"],
                "selection_seconds": _cost(run.selection, result_of),
                "images_per_second": trained["images_per_second"],
                "pretrained": f"{run.pretrained.kind}/{run.pretrained.key}",
                "finetuned": f"{run.finetuned.kind}/{run.finetuned.key}",
            }
        )
    return rows


def _kept(run: Run, result_of: Any) -> float:
    """Return the fraction of the source that is retained, which keep `auto` leaves open."""
    return run.keep if run.keep != AUTO else float(result_of(run.selection)["keep"])


def _cost(selection: Stage | None, result_of: Any) -> float:
    """Return the seconds of surrogate, features, scores and selection, without writing betons."""
    if selection is None:
        return 0.0
    seconds = 0.0
    for stage in with_needs([selection]):
        if stage.kind != "write":
            result = result_of(stage)
            seconds += result.get("pretrain_seconds", result["seconds"])
    return seconds


def comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each selection rule, the paired differences to the full source.

    Each entry has the run's targets, mode, budget, method and keep; the means of the fraction
    kept, the classes and the accuracy; the fields of `Comparison` and its verdict; and the speed-up
    of pretraining over the full source, alone and with the cost of the selection, as the ratio of
    sums over seeds.
    """
    found = []
    full = {_place(row): row for row in rows if row["method"] == FULL}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["method"] != FULL and _place(row) in full:
            groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    for key, group in groups.items():
        pairs = [(row, full[_place(row)]) for row in group]
        result = compare([row["test_accuracy"] - base["test_accuracy"] for row, base in pairs])
        base_seconds = sum(base["pretrain_seconds"] for _, base in pairs)
        seconds = sum(row["pretrain_seconds"] for row, _ in pairs)
        cost = sum(row["selection_seconds"] for row, _ in pairs)
        found.append(
            {
                **dict(zip(_GROUP, key, strict=True)),
                "kept": sum(row["kept"] for row in group) / len(group),
                "classes": sum(row["classes"] for row in group) / len(group),
                "accuracy": sum(row["test_accuracy"] for row in group) / len(group),
                "full_accuracy": sum(base["test_accuracy"] for _, base in pairs) / len(pairs),
                **{name: getattr(result, name) for name in Comparison.__slots__},
                "verdict": result.verdict,
                "speedup": base_seconds / seconds,
                "speedup_with_selection": base_seconds / (seconds + cost),
            }
        )
    return found


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _PAIRED)


def prunings(compared: Sequence[Row]) -> dict[tuple[str, ...], float]:
    """Return the largest pruning without loss, by what a selection rule has but its keep.

    The keep `auto` is a rule of its own and does not count.
    """
    groups: dict[tuple[str, ...], dict[float, Comparison]] = {}
    for row in compared:
        if row["keep"] != AUTO:
            fields = {name: row[name] for name in Comparison.__slots__}
            rule = tuple(row[name] for name in _GROUP[:-1])
            groups.setdefault(rule, {})[row["keep"]] = Comparison(**fields)
    return {rule: largest_pruning(by_keep) for rule, by_keep in groups.items()}


def write_results(out: Path, rows: Sequence[Row]) -> None:
    """Write `results.jsonl` and `results.csv`, one row per finished run."""
    with atomic_open(out / "results.jsonl") as stream:
        stream.writelines((json.dumps(row, allow_nan=False) + "\n").encode() for row in rows)
    table = io.StringIO()
    if rows:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with atomic_open(out / "results.csv") as stream:
        stream.write(table.getvalue().encode())


def table_of(compared: Sequence[Row]) -> str:
    """Return the comparisons as a table, and the largest prunings without loss."""
    lines = [
        f"{'target':<18}{'finetuning':<17}{'budget':<13}{'method':<22}{'keep':>10}{'accuracy':>10}"
        f"{'difference [95 %]':>25}{'missed':>8}  {'verdict':<12}{'speed-up':>9}{'with cost':>10}"
    ]
    for row in sorted(
        compared, key=lambda row: [*(row[name] for name in _GROUP[:-1]), -row["kept"]]
    ):
        interval = f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
        keep = f"auto {row['kept']:.2f}" if row["keep"] == AUTO else f"{row['keep']:g}"
        lines.append(
            f"{target_of(row):<18}{row['mode']:<17}{row['budget']:<13}{row['method']:<22}"
            f"{keep:>10}{100 * row['accuracy']:>10.2f}{interval:>25}"
            f"{100 * row['missed']:>8.2f}  {row['verdict']:<12}{row['speedup']:>9.2f}"
            f"{row['speedup_with_selection']:>10.2f}"
        )
    lines.append("")
    for rule, pruned in prunings(compared).items():
        row = dict(zip(_GROUP, rule, strict=False))
        lines.append(
            f"{target_of(row)}, {row['mode']}, {row['budget']}, {row['method']}: {pruned:.0%} "
            "pruned without loss"
        )
    return "\n".join(lines)


def target_of(row: Row) -> str:
    """Return the target in words: `few of both` is `few`, with scores for `both`."""
    target, scored_on = row["target"], row["scored_on"]
    return str(target if target == scored_on else f"{target} of {scored_on}")
