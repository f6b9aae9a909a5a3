"""Write a self-contained HTML page from the files of a study."""

import json
import os
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ..atomic import atomic_open
from ..stored import read_json
from .classes import COLUMNS, TILE, Ranking, Source, rankings
from .curves import Logs, logs_of
from .figures import Panels
from .findings import PLACE, Findings, grouped, target_name
from .names import BUDGETS, CLOCKS, COSTS, FEWEST_SEEDS, FULL, MARGIN
from .results import Results
from .tables import (
    ahead_tables,
    auto_tables,
    modes_of,
    pruning_table,
    verdict_table,
    warning_tables,
)
from .words import method_label, notes_of, percent, summarise, words


def write_report(
    study_folder: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None
) -> Path:
    """Write `report.html` into a study's folder.

    The page contains everything that it shows and loads nothing. The study may be unfinished.
    Betons, logs and selections that have been deleted are left out. If writing fails, the old page
    remains.

    Args:
        study_folder: folder of `dp4tl study`.
        source: beton of the source, of which the page shows a picture per class. None: the beton
            that the study wrote, if it did.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: there is no study in the folder, or no file `source`.
        ValueError: a result, a selection or scores are damaged.
    """
    results = Results.read(Path(study_folder))
    pictures = Source(results, None if source is None else Path(source))
    findings = results.findings
    panels, logs = Panels(findings.methods), logs_of(results)
    ranked = rankings(results, pictures)
    shown = dict.fromkeys(each.class_id for ranking in ranked for each in ranking.pictured)
    sheet, places = pictures.sheet(list(shown))
    page = _template().render(
        {
            "summary": results.summary,
            "sentences": summarise(findings, results.summary["runs"]),
            "notes": list(notes_of(findings)),
            "prunings": [pruning_table(findings, name) for name in findings.targets],
            "targets": [_target(findings, panels, logs, ranked, t) for t in findings.targets],
            "others": [*auto_tables(findings), *warning_tables(findings)],
            "margin": f"{100 * MARGIN:g}",
            "fewest_seeds": FEWEST_SEEDS,
            "styles": panels.styles,
            "costs": list(_costs(findings)),
            "clock": CLOCKS.get(findings.clock, findings.clock),
            "sheet": sheet,
            "places": places,
            "tile": TILE,
            "columns": COLUMNS,
            "study": json.dumps(results.study, indent=2),
            "machines": logs.machines or [results.summary["environment"]],
            "fingerprints": _fingerprints(results),
        }
    )
    path = results.folder / "report.html"
    with atomic_open(path) as stream:
        # Names of files may hold bytes that are no UTF-8.
        stream.write(page.encode(errors="backslashreplace"))
    return path


def _target(
    findings: Findings, panels: Panels, logs: Logs, ranked: list[Ranking], target: str
) -> dict[str, Any]:
    """Return the panels, tables and rankings of one target."""
    places = [
        rows for rows in grouped(findings.comparisons, *PLACE) if target_name(rows[0]) == target
    ]
    # All modes share a pretraining: the first shows its speed.
    fastest = next((rows for rows in places if rows[0]["budget"] == BUDGETS[0]), places[0])
    return {
        "name": target,
        "modes": [
            {
                "name": words(mode),
                "panels": [
                    (words(rows[0]["budget"]), panels.difference(rows), panels.cost(rows))
                    for rows in places
                    if rows[0]["mode"] == mode
                ],
                "table": verdict_table(findings, target, mode),
            }
            for mode in modes_of(findings, target)
        ],
        "ahead": list(ahead_tables(findings, target)),
        "speed": panels.speedup(fastest),
        "curves": list(_curve_panels(panels, logs, target)),
        "rankings": [each for each in ranked if each.scored_on == places[0][0]["scored_on"]],
    }


def _curve_panels(panels: Panels, logs: Logs, target: str) -> Iterator[tuple[str, str]]:
    """Yield title and panel of the learning curves at each budget, fraction kept and mode."""
    full = {
        (budget, mode): by_method[FULL]
        for (name, budget, _, mode), by_method in logs.curves.items()
        if name == target and FULL in by_method
    }
    for (name, budget, keep, mode), by_method in logs.curves.items():
        others = {method: curve for method, curve in by_method.items() if method != FULL}
        if name == target and others:
            what = "loss" if mode == "pretraining" else "validation accuracy"
            title = f"{mode}, keep {keep}, {budget}".replace("_", " ")
            yield title, panels.curves(others, full.get((budget, mode)), what)


def _costs(findings: Findings) -> Iterator[dict[str, Any]]:
    """Yield the mean cost of a selection by target and method, in parts."""
    for rows in grouped(findings.comparisons, "scored_on", "method"):
        parts = {name: sum(row[name] for row in rows) / len(rows) for name in COSTS}
        full = sum(row["full_pretrain_seconds"] for row in rows) / len(rows)
        total = sum(parts.values())
        yield {
            "target": rows[0]["scored_on"], "method": rows[0]["method"], "parts": parts,
            "total": total, "share": total / full, "full": full,
        }  # fmt: skip


def _fingerprints(results: Results) -> dict[str, str]:
    """Return what the runs recorded about their betons, by dataset and split."""
    found: dict[str, str] = {}
    stages = {("source", row["pretrained"]) for row in results.findings.rows[:1]}
    stages |= {(f"target {row['target']}", row["finetuned"]) for row in results.findings.rows}
    for dataset, stage in sorted(stages):
        if f"{dataset} train" in found:
            continue
        try:
            config = read_json(results.folder / stage / "run" / "config.json")
        except (OSError, ValueError):  # removed to free space
            continue
        if isinstance(config, dict):
            for split in ("train", "val", "test"):
                if isinstance(config.get(split), str):
                    found[f"{dataset} {split}"] = config[split]
    return found


# -- the page ------------------------------------------------------------------------------------
@cache
def _template() -> jinja2.Template:
    """Return the template of the page, which escapes all values but our own panels."""
    source = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        label=method_label, words=words, share=percent, seconds="{:,.1f}".format
    )
    return environment.from_string(source)
