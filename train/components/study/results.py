"""The results of a study: one row per run, and one comparison per selection rule."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import t

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.utils import atomic_open, environment, write_json

from ...configs.study import AUTO, FEWEST_SEEDS, FULL
from .plan import Run
from .rule import LEVEL, Comparison, compare, largest_pruning
from .stages import Stage, with_needs

Row = Mapping[str, Any]
_GROUP = ("scored_on", "target", "mode", "budget", "method", "keep")
_PAIRED = ("target", "mode", "budget", "seed")  # equal for a run and its full run
# What a selection costs, by the kind of the stages; all other kinds count as scoring.
_COSTS = {
    **dict.fromkeys(("pretrain", "pretrain_moco", "weights"), "surrogate_seconds"),
    "features": "features_seconds",
    "selection": "select_seconds",
}
_SCORING = "scoring_seconds"
CLOCKS = {"processor": "processor time", "wall": "wall clock"}
COSTS = ("surrogate_seconds", "features_seconds", _SCORING, "select_seconds")


def rows_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a row for each finished run, in the order of the plan.

    All seconds of a study are by one clock, which `clock` names. "processor": the processor time of
    each stage, without compilation. "wall": the training time of a training stage, and the time of
    any other stage without compilation. Times are by the wall clock if a stage trained on a GPU, or
    was continued after a stop, or does not have its processor time.
    """
    results: dict[str, dict[str, Any] | None] = {}
    images: dict[Path, int] = {}

    def result_of(stage: Stage) -> dict[str, Any] | None:
        if stage.key not in results:
            results[stage.key] = stage.result()
        return results[stage.key]

    def images_of(beton: Path) -> int:
        if beton not in images:
            images[beton] = len(BetonIndex.open(beton))
        return images[beton]

    rows, runs = [], list(runs)
    clock = _clock_of(runs, result_of)
    for run in runs:
        tuned, trained = result_of(run.finetuned), result_of(run.pretrained)
        if tuned is None or trained is None:
            continue
        rows.append(
            {
                **run.about,
                "test_accuracy": tuned["test_accuracy"],
                "test_images": images_of(run.finetuned.paths["test"]),
                "kept": _kept(run, result_of),
                "classes": trained["retained_classes"],
                "samples": trained["retained_samples"],
                "steps": trained["steps"],
                "clock": clock,
                "pretrain_seconds": _seconds(trained, clock),
                "selection_seconds": sum(
                    (costs := _costs(run.selection, result_of, clock)).values()
                ),
                **costs,
                "images_per_second": trained["images_per_second"],
                "pretrained": _place_of(run.pretrained),
                "finetuned": _place_of(run.finetuned),
                "selection": _place_of(run.selection),
                "scores": _place_of(run.selection.needs.get("scores") if run.selection else None),
            }
        )
    return rows


def _kept(run: Run, result_of: Any) -> float:
    """Return the fraction of the source that is retained, which keep `auto` leaves open."""
    return run.keep if run.keep != AUTO else float(result_of(run.selection)["keep"])


def _place_of(stage: Stage | None) -> str | None:
    """Return the folder of a stage, relative to that of the study."""
    return None if stage is None else f"{stage.kind}/{stage.key}"


def _clock_of(
    runs: Sequence[Run], result_of: Callable[[Stage], dict[str, Any] | None]
) -> Literal["processor", "wall"]:
    """Return the clock that all timed stages have."""
    timed = [run.pretrained for run in runs] + [run.selection for run in runs if run.selection]
    results = (result_of(stage) for stage in with_needs(timed) if stage.kind != "write")
    is_processor = all(_has_processor_time(result) for result in results if result is not None)
    return "processor" if is_processor else "wall"


def _has_processor_time(result: Mapping[str, Any]) -> bool:
    """Return whether a stage ran on a CPU and has its processor time.

    A stage that was continued has that of its last part alone. Its training time, over all parts,
    is then longer than the stage.
    """
    return (
        "processor_seconds" in result
        and result.get("environment", {}).get("gpu", "none") == "none"
        and result.get("pretrain_seconds", 0.0) <= result["seconds"]
    )


def _seconds(result: Mapping[str, Any], clock: str) -> float:
    """Return the seconds of a stage without compilation."""
    if clock == "processor":
        return float(result["processor_seconds"])
    whole = result["seconds"] - result.get("compile_seconds", 0.0)
    return float(result.get("pretrain_seconds", whole))


def _costs(
    selection: Stage | None, result_of: Callable[[Stage], dict[str, Any] | None], clock: str
) -> dict[str, float]:
    """Return the seconds of each part of a selection, without compilation and writing betons."""
    seconds = dict.fromkeys(COSTS, 0.0)
    for stage in [] if selection is None else with_needs([selection]):
        result = result_of(stage)
        if stage.kind != "write" and result is not None:
            seconds[_COSTS.get(stage.kind, _SCORING)] += _seconds(result, clock)
    return seconds


def comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each selection rule, the paired differences to the full source.

    Each entry has the run's targets, mode, budget, method and keep; the means of the fraction
    kept, the classes, the samples and the seconds; the mean accuracies of the selection and of the
    full source with their 95 % intervals; the fields of `Comparison` and its verdict; and the
    speed-up of pretraining over the full source, alone and with the cost of the selection, as the
    ratio of sums over seeds, with its 95 % interval and the clock of the seconds.

    Raises:
        ValueError: a rule or the full source has two rows for a seed.
    """
    found = []
    full = {_place(row): row for row in rows if row["method"] == FULL}
    repeats = Counter((*(row[name] for name in _GROUP), row["seed"]) for row in rows)
    if repeated := [key for key, count in repeats.items() if count > 1]:
        raise ValueError(f"two rows have the same run: {', '.join(map(str, repeated[0]))}.")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["method"] != FULL and _place(row) in full:
            groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    for key, group in groups.items():
        pairs = [(row, full[_place(row)]) for row in group]
        # Rows of earlier versions lack the number of images.
        step = max(1 / row["test_images"] if "test_images" in row else 0.0 for row in group)
        differences = [row["test_accuracy"] - base["test_accuracy"] for row, base in pairs]
        result = compare(differences, step)
        full_seconds = [base["pretrain_seconds"] for _, base in pairs]
        seconds = [row["pretrain_seconds"] for row in group]
        with_cost = [row["pretrain_seconds"] + row["selection_seconds"] for row in group]
        found.append(
            {
                **dict(zip(_GROUP, key, strict=True)),
                "kept": _mean(row["kept"] for row in group),
                "classes": _mean(row["classes"] for row in group),
                "samples": _mean(row["samples"] for row in group),
                **_with_interval("accuracy", group),
                **_with_interval("full_accuracy", [base for _, base in pairs]),
                **{name: getattr(result, name) for name in Comparison.__slots__},
                "verdict": result.verdict,
                "clock": group[0].get("clock", "wall"),
                **_speedup("speedup", full_seconds, seconds),
                **_speedup("speedup_with_selection", full_seconds, with_cost),
                "pretrain_seconds": _mean(seconds),
                "full_pretrain_seconds": _mean(full_seconds),
                **{name: _mean(row[name] for row in group) for name in COSTS},
            }
        )
    return found


def _with_interval(name: str, rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean test accuracy, and both ends of its 95 % interval over the seeds."""
    found = compare([row["test_accuracy"] for row in rows])
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _speedup(name: str, full: Sequence[float], pruned: Sequence[float]) -> dict[str, float]:
    """Return a speed-up over paired seeds, and both ends of its 95 % interval.

    The speed-up is the ratio R of the sums. With the standard deviation s of the logarithms of the
    n ratios, the interval is `R exp(-w)` to `R exp(w)` with `w = t(0.975, n - 1) s / sqrt(n)`.
    """
    ratio, width = sum(full) / sum(pruned), math.inf
    if (count := len(full)) > 1:
        spread = float(np.std(np.log(full) - np.log(pruned), ddof=1))
        width = float(t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
    low, high = ratio * math.exp(-width), ratio * math.exp(width)
    return {name: ratio, f"{name}_low": low, f"{name}_high": high}


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


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


def write_summary(
    out: Path, runs: Sequence[Run], stages: Sequence[Stage], compared: Sequence[Row], command: str
) -> None:
    """Write `summary.json`, from which the report is made together with the rows.

    Args:
        out: folder of the study.
        runs: all runs of the plan.
        stages: all stages that the command makes.
        compared: comparisons of the finished runs.
        command: command line that repeats the study.
    """
    states: dict[str, Counter[str]] = {}
    for stage in stages:
        states.setdefault(stage.kind, Counter())[stage.state] += 1
    source = runs[0].pretrained.paths["train"]
    summary = summary_of(
        compared,
        command=command,
        source=str(source.relative_to(out) if source.is_relative_to(out) else source),
        runs=len(runs),
        stages=states,
        environment=environment(),
    )
    write_json(out / "summary.json", summary)


def summary_of(compared: Sequence[Row], **about: Any) -> dict[str, Any]:
    """Return the content of `summary.json`: `about`, comparisons, and prunings without loss."""
    return {
        **about,
        "fewest_seeds": FEWEST_SEEDS,
        "comparisons": [_finite(row) for row in compared],
        "prunings": [
            {**dict(zip(_GROUP, key, strict=False)), "pruned": pruned}
            for key, pruned in prunings(compared).items()
        ],
    }


def _finite(row: Row) -> dict[str, Any]:
    """Replace the infinite interval of a single seed, which JSON does not have, by None."""
    return {
        name: None if isinstance(value, float) and math.isinf(value) else value
        for name, value in row.items()
    }


def table_of(compared: Sequence[Row]) -> str:
    """Return the comparisons as a table, and the largest prunings without loss."""
    lines = [
        f"{'target':<18}{'finetuning':<17}{'budget':<13}{'method':<22}{'keep':>10}{'accuracy':>10}"
        f"{'difference [95 %]':>25}{'missed':>8}  {'verdict':<12}{'speed-up [95 %]':>22}"
        f"{'with cost [95 %]':>22}"
    ]
    for row in sorted(
        compared, key=lambda row: [*(row[name] for name in _GROUP[:-1]), -row["kept"]]
    ):
        interval = f"{100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
        keep = f"auto {row['kept']:.2f}" if row["keep"] == AUTO else f"{row['keep']:g}"
        lines.append(
            f"{target_of(row):<18}{row['mode']:<17}{row['budget']:<13}{row['method']:<22}"
            f"{keep:>10}{100 * row['accuracy']:>10.2f}{interval:>25}"
            f"{100 * row['missed']:>8.2f}  {row['verdict']:<12}"
            f"{speedup_of(row, 'speedup'):>22}{speedup_of(row, 'speedup_with_selection'):>22}"
        )
    if compared:
        lines.append(f"Speed-ups: by {CLOCKS[compared[0]['clock']]}.")
    lines.append("")
    if any(row["seeds"] < FEWEST_SEEDS for row in compared):
        lines.append(f"A verdict needs {FEWEST_SEEDS} seeds.")
    for rule, pruned in prunings(compared).items():
        row = dict(zip(_GROUP, rule, strict=False))
        lines.append(
            f"{target_of(row)}, {row['mode']}, {row['budget']}, {row['method']}: "
            + (f"{pruned:.0%} pruned without loss" if pruned else "no pruning shown without loss")
        )
    return "\n".join(lines)


def speedup_of(row: Row, name: str) -> str:
    """Return a speed-up of a comparison with its interval."""
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def target_of(row: Row) -> str:
    """Return the target in words: `few of both` is `few`, with scores for `both`."""
    target, scored_on = row["target"], row["scored_on"]
    return str(target if target == scored_on else f"{target} of {scored_on}")
