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
from .results import BUDGETS, COSTS, FULL, Results, Row, target_name, uneven_rates
from .words import method_label, summarise

_CLOCKS = {"processor": "processor time", "wall": "wall clock"}
_PLACE = ("scored_on", "target", "mode", "budget")


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
    panels, logs = Panels(results), logs_of(results)
    ranked = rankings(results, pictures)
    shown = dict.fromkeys(each.class_id for ranking in ranked for each in ranking.pictured)
    sheet, places = pictures.sheet(list(shown))
    page = _template().render(
        {
            "results": results,
            "sentences": summarise(results),
            "prunings": _prunings(results),
            "targets": [_target(results, panels, logs, ranked, name) for name in _targets(results)],
            "styles": panels.styles,
            "costs": list(_costs(results)),
            "uneven": uneven_rates([row["images_per_second"] for row in results.rows]),
            "clocks": sorted(
                {_CLOCKS.get(row["clock"], row["clock"]) for row in results.comparisons}
            ),
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


def _targets(results: Results) -> list[str]:
    return list(dict.fromkeys(map(target_name, results.comparisons)))


def _target(
    results: Results, panels: Panels, logs: Logs, ranked: list[Ranking], target: str
) -> dict[str, Any]:
    """Return the panels, tables and rankings of one target."""
    places = [
        (mode, budget, rows)
        for (_, _, mode, budget), rows in results.groups(*_PLACE)
        if target_name(rows[0]) == target
    ]
    scored_on = places[0][2][0]["scored_on"]
    by_mode: dict[str, dict[str, list[Row]]] = {}
    for mode, budget, rows in places:
        by_mode.setdefault(mode, {})[budget] = rows
    # All modes share a pretraining: the first shows its speed.
    _, _, fastest = next((each for each in places if each[1] == BUDGETS[0]), places[0])
    return {
        "name": target,
        "modes": [
            {
                "name": mode,
                "panels": [
                    (budget, panels.difference(rows), panels.cost(rows))
                    for budget, rows in budgets.items()
                ],
                "rows": [row for rows in budgets.values() for row in _sorted(results, rows)],
            }
            for mode, budgets in by_mode.items()
        ],
        "speed": panels.speedup(fastest),
        "curves": list(_curve_panels(panels, logs, target)),
        "rankings": [each for each in ranked if each.scored_on == scored_on],
    }


def _sorted(results: Results, rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row["kept"], results.methods.index(row["method"])))


def _curve_panels(panels: Panels, logs: Logs, target: str) -> Iterator[tuple[str, str]]:
    """Yield title and panel of the learning curves at each budget, fraction kept and mode."""
    full = {
        (budget, mode): by_method[FULL]
        for (name, budget, _, mode), by_method in logs.curves.items()
        if name == target and FULL in by_method
    }
    for (name, budget, keep, mode), by_method in logs.curves.items():
        if name == target and FULL not in by_method:
            what = "loss" if mode == "pretraining" else "validation accuracy"
            title = f"{mode}, keep {keep}, {budget}".replace("_", " ")
            yield title, panels.curves(by_method, full.get((budget, mode)), what)


def _prunings(results: Results) -> list[tuple[Row, dict[str, float]]]:
    """Return the largest prunings by method, for each target, mode and budget."""
    found: dict[tuple[str, ...], tuple[Row, dict[str, float]]] = {}
    for row in results.summary["prunings"]:
        key = tuple(row[name] for name in _PLACE)
        found.setdefault(key, (row, {}))[1][row["method"]] = row["pruned"]
    return list(found.values())


def _costs(results: Results) -> Iterator[dict[str, Any]]:
    """Yield the mean cost of a selection by target and method, in parts."""
    for (scored_on, method), rows in results.groups("scored_on", "method"):
        parts = {name: sum(row[name] for row in rows) / len(rows) for name in COSTS}
        full = sum(row["full_pretrain_seconds"] for row in rows) / len(rows)
        total = sum(parts.values())
        yield {
            "target": scored_on, "method": method, "parts": parts, "total": total,
            "share": total / full, "full": full,
        }  # fmt: skip


def _fingerprints(results: Results) -> dict[str, str]:
    """Return what the runs recorded about their betons, by dataset and split."""
    found: dict[str, str] = {}
    stages = {("source", row["pretrained"]) for row in results.rows[:1]}
    stages |= {(f"target {row['target']}", row["finetuned"]) for row in results.rows}
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
        label=method_label,
        target=target_name,
        words=lambda name: str(name).replace("_", " "),
        keep=lambda keep: keep if isinstance(keep, str) else f"{keep:g}",
        percent=lambda value: f"{100 * value:.2f}",
        share=lambda value: f"{100 * value:.3g} %",
        points=_points,
        times=lambda value: f"{value:.2f}\N{MULTIPLICATION SIGN}",
        range=_range,
        seconds="{:,.1f}".format,
    )
    return environment.from_string(source)


def _range(ends: tuple[float | None, float | None]) -> str:
    return "[{}]".format(", ".join("?" if end is None else f"{end:.2f}" for end in ends))


def _points(value: float | None, sign: str = "+") -> str:
    return "?" if value is None else f"{100 * value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")
