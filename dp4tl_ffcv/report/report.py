"""Figures and the self-contained HTML report of a finished run."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..artifacts import atomic_open
from .figures import Plot, accuracy_plot, class_scores_plot, contact_sheet_png, speedup_plot
from .page import (
    ClassScores,
    ContactSheet,
    Row,
    full_row,
    parse_rows,
    ranked,
    reaches_full,
    render,
    summarise,
)

_MAX_PICTURES = 40  # of each half of a sheet: beyond that a page of 1,000 classes is all pictures
_METHODS = ("full", "lm", "fm", "random")  # order of the table's rows at one keep


def write_report(
    result: Mapping[str, Any],
    path: Path,
    *,
    class_names: Sequence[str],
    class_scores: Sequence[ClassScores],
    sheets: Sequence[ContactSheet],
) -> Path:
    """Write a run's report as one HTML file, and its figures as PNG files beside it.

    The page holds everything it shows and loads nothing. All of it is made before the first file
    is written, and each file is replaced in one step, so a failure leaves the old report.

    Args:
        result: the parsed `result.json` of the run.
        path: the HTML file to write; figures go to the folder `figures` next to it.
        class_names: name of each source class.
        class_scores: the class scores of each method, drawn as one histogram each.
        sheets: kept and pruned classes to show, one sheet for each selection.

    Returns:
        The path of the page.

    Raises:
        ValueError: the result lacks a key, has no row or no full row, or the class scores are
            not one for each class name.
    """
    rows = parse_rows(result)
    pngs: dict[str, bytes] = {}
    curves = [accuracy_plot(rows), speedup_plot(rows)]
    histograms: list[tuple[ClassScores, Plot, list[tuple[str, str, bool]]]] = []
    for scores in class_scores:
        if len(scores.scores) != len(class_names):
            raise ValueError(
                f"`class_scores` must have one score for each of {len(class_names)} class names; "
                f"got {len(scores.scores)} for {scores.method!r}. Score the same source dataset."
            )
        name = _free_name(f"class_scores_{scores.method}", [each.name for _, each, _ in histograms])
        plot = class_scores_plot(scores, class_names, name)
        histograms.append((scores, plot, ranked(scores, class_names)))
    pngs |= {plot.name: plot.png for plot in [*curves, *(each for _, each, _ in histograms)]}
    page = render(
        {
            "result": result,
            "summary": summarise(rows),
            "tables": _tables(rows),
            "curves": {plot.name: Markup(plot.svg) for plot in curves},
            "histograms": [(a, Markup(plot.svg), top) for a, plot, top in histograms],
            "sheets": [_sheet(sheet, pngs) for sheet in sheets],
        }
    )
    for name, png in pngs.items():
        _write(path.parent / "figures" / f"{name}.png", png)
    _write(path, page.encode())
    return path


def _tables(rows: Sequence[Row]) -> list[tuple[str, list[tuple[Row, bool]]]]:
    """Return rows by finetuning, each with whether it reaches the full run, for reading down."""

    def place(row: Row) -> tuple[bool, bool, float, int]:
        known = _METHODS.index(row.method) if row.method in _METHODS else len(_METHODS)
        return row.method != "full", row.budget != "equal_epochs", -row.keep, known

    return [
        (
            finetuning,
            [
                (row, reaches_full(row, full_row(rows, finetuning)))
                for row in sorted(rows, key=place)
                if row.finetuning == finetuning
            ],
        )
        for finetuning in dict.fromkeys(row.finetuning for row in rows)
    ]


def _sheet(sheet: ContactSheet, pngs: dict[str, bytes]) -> dict[str, Any]:
    """Draw both halves of a sheet, add them to the figures, return what the page shows."""
    halves = []
    for half, pictures in (("kept", sheet.kept), ("pruned", sheet.pruned)):
        shown = pictures[:_MAX_PICTURES]
        source = ""
        if shown:
            name = _free_name(f"classes_{sheet.title}_{half}", pngs)
            pngs[name] = contact_sheet_png(shown)
            source = f"data:image/png;base64,{base64.b64encode(pngs[name]).decode()}"
        halves.append((half, source, [name for name, _ in shown], len(pictures)))
    return {"title": sheet.title, "halves": halves}


def _free_name(wish: str, taken: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a safe file name that is like `wish` and not taken."""
    base = re.sub(r"[^A-Za-z0-9.]+", "_", wish).strip("._")
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def _write(path: Path, content: bytes) -> None:
    with atomic_open(path) as stream:
        stream.write(content)
