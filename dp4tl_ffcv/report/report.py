"""Write figures and a self-contained HTML page from the files of a finished demo."""

import base64
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_open
from ..beton import BetonIndex, read_image
from ..scoring import Scores
from ..selection import Selection
from ..stored import read_json
from .figures import accuracy_plot, class_scores_plot, contact_sheet_png, speedup_plot
from .page import ClassScores, Row, full_row, parse_rows, reaches_full, render, summarise

_MAX_PICTURES = 40  # of kept and of pruned classes: more pictures would bury the page
_TOP = 15  # classes listed below a histogram


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` and the folder `figures` into a demo's folder.

    The page contains everything that it shows and loads nothing. All of it is made before the
    first file is replaced, so a failure leaves the old report intact.

    Args:
        run_folder: folder of a finished `dp4tl demo`.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: the demo is not finished, or one of its files was removed.
        ValueError: `result.json` is incomplete.
        StaleArtifactError: a selection belongs to another beton.
    """
    folder = Path(run_folder)
    path = folder / "result.json"
    try:
        result = read_json(path)
        rows = parse_rows(result)
        classes = result["classes"]
        parts = (classes["source"], *classes["scores"].values(), *classes["selections"].values())
        for part in parts:
            if not (folder / part).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"it names {part!r}, which is outside of its folder")
    except ValueError as error:
        raise ValueError(
            f"{path} is not the result of a finished demo: {error}. Run `dp4tl demo` again."
        ) from error
    index = BetonIndex.open(folder / classes["source"])
    names = index.class_names()
    if index.labels().max() >= len(names):
        raise ValueError(f"{str(index.path)!r} has no names for all its classes. Write it again.")
    curves = [accuracy_plot(rows), speedup_plot(rows)]
    relevant = np.isin(np.arange(len(names)), classes["relevant"])
    scores = [
        ClassScores(method, Scores.load(folder / path), relevant)
        for method, path in classes["scores"].items()
    ]
    if any(len(each.scores) != len(names) for each in scores):
        raise ValueError(f"the scores in {str(folder)!r} are not for {len(names)} classes.")
    histograms = [class_scores_plot(each, names, place) for place, each in enumerate(scores)]
    pngs = {plot.name: plot.png for plot in (*curves, *histograms)}
    page = render(
        {
            "result": result,
            "summary": summarise(rows),
            "tables": _tables(rows),
            "curves": {plot.name: _data_uri("svg+xml", plot.svg) for plot in curves},
            "histograms": [
                (each, _data_uri("svg+xml", plot.svg), each.best(names, _TOP))
                for each, plot in zip(scores, histograms, strict=True)
            ],
            "sheets": _sheets(folder, classes, index, pngs),
        }
    )
    for name, png in pngs.items():
        _write(folder / "figures" / f"{name}.png", png)
    # Names of files may hold bytes that are no UTF-8.
    _write(folder / "report.html", page.encode(errors="backslashreplace"))
    return folder / "report.html"


def _tables(rows: Sequence[Row]) -> list[tuple[str, list[tuple[Row, bool]]]]:
    """Return the rows of each finetuning in reading order, with whether they reach the full run."""
    methods = list(dict.fromkeys(row.method for row in rows))

    def place(row: Row) -> tuple[bool, bool, float, int]:
        apart = row.budget != "equal_epochs"
        return row.method != "full", apart, -row.keep, methods.index(row.method)

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


def _sheets(
    folder: Path, classes: Mapping[str, Any], index: BetonIndex, pngs: dict[str, bytes]
) -> list[dict[str, Any]]:
    """Draw one picture of each kept and pruned class, and add the drawings to `pngs`."""
    names, sheets = index.class_names(), []
    labels, firsts = np.unique(index.labels(), return_index=True)
    samples = dict(zip(labels.tolist(), firsts.tolist(), strict=True))
    for title, path in classes["selections"].items():
        selection = Selection.load(folder / path)
        selection.check(index)
        kept = set(selection.classes.tolist())
        halves = []
        for half, members in (
            ("kept", [each for each in samples if each in kept]),
            ("pruned", [each for each in samples if each not in kept]),
        ):
            shown = members[:_MAX_PICTURES]
            source = ""
            if shown:
                name = "_".join(("classes", *re.findall(r"[\w.]+", title), half))
                pictures = [(names[each], read_image(index, samples[each])) for each in shown]
                pngs[name] = contact_sheet_png(pictures)
                source = _data_uri("png", pngs[name])
            halves.append((half, source, [names[each] for each in shown], len(members)))
        sheets.append({"title": title, "halves": halves})
    return sheets


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, content: bytes) -> None:
    with atomic_open(path) as stream:
        stream.write(content)
