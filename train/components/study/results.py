"""The results of a study: one row per run, and what the rows show."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.report.findings import EVIDENCE, Findings
from dp4tl_ffcv.report.names import AUTO, COSTS
from dp4tl_ffcv.report.tables import as_text, tables_of
from dp4tl_ffcv.report.words import notes_of, summarise
from dp4tl_ffcv.utils import atomic_open, environment, write_json

from .plan import Run
from .stages import Stage, with_needs

_Results = Callable[[Stage], dict[str, Any] | None]
_SCORING = "scoring_seconds"
# What a selection costs, by the kind of the stages; all other kinds count as scoring.
_COSTS = {
    **dict.fromkeys(("pretrain", "pretrain_moco", "weights"), "surrogate_seconds"),
    "features": "features_seconds",
    "selection": "select_seconds",
}
_WARNING = ("score", "selection")  # kinds of stages whose warnings are about a selection


def rows_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a row for each finished run, in the order of the plan.

    All seconds of a study are by one clock, which `clock` names. "processor": the processor time of
    each stage, without compilation. "wall": the training time of a training stage, and the time of
    any other stage without compilation. Times are by the wall clock if a stage trained on a GPU, or
    was continued after a stop, or does not have its processor time.
    """
    results: dict[str, dict[str, Any] | None] = {}
    images: dict[Path, dict[str, int]] = {}

    def result_of(stage: Stage) -> dict[str, Any] | None:
        if stage.key not in results:
            results[stage.key] = stage.result()
        return results[stage.key]

    rows, runs = [], list(runs)
    clock = _clock_of(runs, result_of)
    for run in runs:
        tuned, trained = result_of(run.finetuned), result_of(run.pretrained)
        if tuned is None or trained is None:
            continue
        costs = _costs(run.selection, result_of, clock)
        rows.append(
            {
                **run.about,
                "test_accuracy": tuned["test_accuracy"],
                **_test_images(tuned, run.finetuned.paths["test"], images),
                "kept": _kept(run, result_of),
                "classes": trained["retained_classes"],
                "samples": trained["retained_samples"],
                "steps": trained["steps"],
                "clock": clock,
                "pretrain_seconds": _seconds(trained, clock),
                "selection_seconds": sum(costs.values()),
                **costs,
                "images_per_second": trained["images_per_second"],
                "pretrained": _place_of(run.pretrained),
                "finetuned": _place_of(run.finetuned),
                "selection": _place_of(run.selection),
                "scores": _place_of(run.selection.needs.get("scores") if run.selection else None),
                **_about_selection(run.selection, result_of),
            }
        )
    return rows


def _test_images(
    tuned: Mapping[str, Any], beton: Path, known: dict[Path, dict[str, int]]
) -> dict[str, int]:
    """Return the number of test images, unless an old result lacks it and the beton is gone."""
    if "test_samples" in tuned:
        return {"test_images": tuned["test_samples"]}
    if beton not in known:
        known[beton] = {}
        with suppress(OSError):
            known[beton] = {"test_images": len(BetonIndex.open(beton))}
    return known[beton]


def _about_selection(selection: Stage | None, result_of: _Results) -> dict[str, Any]:
    """Return the unit of random scores, the evidence of keep `auto` and warnings, if any."""
    if selection is None:
        return {}
    about: dict[str, Any] = {}
    scores = selection.needs.get("scores")
    if scores is not None and scores.facts["method"] == "random":
        about["random"] = scores.facts["options"].get("unit", "class")
    made = result_of(selection) or {}
    about |= {name: made[name] for name in EVIDENCE if name in made}
    found = [result_of(each) for each in with_needs([selection]) if each.kind in _WARNING]
    if texts := [text for result in found if result for text in result.get("warnings", [])]:
        about["warnings"] = list(dict.fromkeys(texts))
    return about


def _kept(run: Run, result_of: _Results) -> float:
    """Return the fraction of the source that is retained, which keep `auto` leaves open."""
    if run.keep != AUTO or run.selection is None:
        return float(run.keep)
    made = result_of(run.selection)
    if made is None:
        raise ValueError(f"{run.selection.folder} is not finished. Run the study again.")
    return float(made["keep"])


def _place_of(stage: Stage | None) -> str | None:
    """Return the folder of a stage, relative to that of the study."""
    return None if stage is None else f"{stage.kind}/{stage.key}"


def _clock_of(runs: Sequence[Run], result_of: _Results) -> Literal["processor", "wall"]:
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


def _costs(selection: Stage | None, result_of: _Results, clock: str) -> dict[str, float]:
    """Return the seconds of each part of a selection, without compilation and writing betons."""
    seconds = dict.fromkeys(COSTS, 0.0)
    for stage in [] if selection is None else with_needs([selection]):
        result = result_of(stage)
        if stage.kind != "write" and result is not None:
            seconds[_COSTS.get(stage.kind, _SCORING)] += _seconds(result, clock)
    return seconds


def write_results(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `results.jsonl` and `results.csv`, one row per finished run."""
    with atomic_open(out / "results.jsonl") as stream:
        stream.writelines((json.dumps(row, allow_nan=False) + "\n").encode() for row in rows)
    table = io.StringIO()
    if rows:
        writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    with atomic_open(out / "results.csv") as stream:
        stream.write(table.getvalue().encode())


def write_summary(
    out: Path, runs: Sequence[Run], stages: Sequence[Stage], findings: Findings, command: str
) -> None:
    """Write `summary.json`, from which the report is made together with the rows.

    Args:
        out: folder of the study.
        runs: all runs of the plan.
        stages: all stages that the command makes.
        findings: of the finished runs.
        command: command line that repeats the study.
    """
    states: dict[str, Counter[str]] = {}
    for stage in stages:
        states.setdefault(stage.kind, Counter())[stage.state] += 1
    source = runs[0].pretrained.paths["train"]
    summary = {
        "command": command,
        "source": str(source.relative_to(out) if source.is_relative_to(out) else source),
        "runs": len(runs),
        "stages": states,
        "environment": environment(),
        "control": findings.control,
        "comparisons": findings.comparisons,
        "prunings": findings.prunings,
        "auto": findings.regrets,
    }
    write_json(out / "summary.json", summary)


def text_of(findings: Findings, planned: int) -> str:
    """Return the tables of a study for the terminal, and what they show in sentences."""
    tables = "\n\n".join(map(as_text, tables_of(findings)))
    return "\n".join([tables, "", *summarise(findings, planned), *notes_of(findings)])
