"""Figures of the report, as SVG for the page and as PNG for the folder.

The same input gives the same bytes, and the caller's plots and backend are left alone.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .page import ClassScores, Row, full_row, method_label

# Okabe and Ito's palette, safe for colour-blind readers: a colour and a marker for each method.
_STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)
_FULL, _IDEAL, _IRRELEVANT = "#444444", "#777777", "#BDBDBD"
_MAX_NAMED = 40  # more class names on one axis would be illegible
_MAX_GAPS = 200  # with more bars, gaps would be narrower than a pixel
_ASIDE = 0.04  # methods are drawn next to each other, this fraction of keep apart
# Sizes in a contact sheet, in pixels: twice the size on the page, for sharp print.
_HEIGHT, _TILE, _LETTER, _COLUMNS = 128, 184, 20, 5
_RC = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")},
    "svg.hashsalt": "dp4tl_ffcv",  # the same ids in the SVG in every run
    "svg.fonttype": "path",  # needs no font
    "text.parse_math": False,  # class names may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A finished figure and its file name without suffix."""

    name: str
    svg: bytes
    png: bytes


@mpl.rc_context(_RC)
def accuracy_plot(rows: Sequence[Row]) -> Plot:
    """Plot test accuracy by fraction kept, a panel per finetuning, the full source as a band."""
    finetunings = list(dict.fromkeys(row.finetuning for row in rows))
    figure = Figure(figsize=(max(5.0, 4.4 * len(finetunings)), 4.4), layout="constrained")
    panels = figure.subplots(1, len(finetunings), sharey=True, squeeze=False)[0]
    styles = _styles(rows)
    for axes, finetuning in zip(panels, finetunings, strict=True):
        full = full_row(rows, finetuning)
        mean, spread = full.test_accuracy_mean, full.test_accuracy_spread or 0.0
        axes.axhspan(mean - spread, mean + spread, color=_FULL, alpha=0.18, linewidth=0)
        axes.axhline(mean, color=_FULL, linewidth=1.2)
        shown = [row for row in rows if row.finetuning == finetuning]
        for place, (method, style) in enumerate(styles.items()):
            mine = [row for row in shown if row.method == method]
            middle = (len(styles) - 1) / 2
            _draw_accuracy(axes, mine, style, (place - middle, place + middle + 1))
        axes.set_title(finetuning.replace("_", " "))
        _keep_axis(axes, rows)
    panels[0].set_ylabel("test accuracy")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    band = Patch(color=_FULL, alpha=0.25, label="full source ± spread")
    dot = Line2D([], [], color=_FULL, alpha=0.45, marker=".", linestyle="", label="one seed")
    handles = [*_handles(styles, rows), band, dot]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return _finish(figure, "accuracy_vs_keep")


def _draw_accuracy(
    axes: Axes, rows: Sequence[Row], style: tuple[str, str], places: tuple[float, float]
) -> None:
    """Draw the line of one method at equal epochs, and hollow markers at equal iterations."""
    for hollow in (False, True):
        chosen = sorted((row for row in rows if _hollow(row) == hollow), key=lambda row: row.keep)
        x = [row.keep * (1 + _ASIDE * places[hollow]) for row in chosen]
        for at, row in zip(x, chosen, strict=True):
            seeds = row.test_accuracies
            axes.plot([at] * len(seeds), seeds, ".", color=style[0], alpha=0.4, zorder=2)
        if chosen:
            means = [row.test_accuracy_mean for row in chosen]
            spreads = [row.test_accuracy_spread or 0.0 for row in chosen]
            axes.errorbar(x, means, yerr=spreads, capsize=2.5, zorder=3, **_marks(style, hollow))


@mpl.rc_context(_RC)
def speedup_plot(rows: Sequence[Row]) -> Plot:
    """Plot the speed-up of pretraining by fraction kept, without and with selection cost."""
    figure = Figure(figsize=(8.8, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    styles = _styles(rows)
    shown = {"pretraining alone": "speedup", "with selection cost": "speedup_with_selection"}
    for axes, (title, key) in zip(panels, shown.items(), strict=True):
        axes.set_title(title)
        for place, (method, style) in enumerate(styles.items()):
            mine = [row for row in rows if row.method == method]
            _draw_speedup(axes, mine, style, place, key)
        _keep_axis(axes, rows)
        ends = np.array([min(row.keep for row in rows), 1.0])
        axes.plot(ends, 1 / ends, ":", color=_IDEAL, zorder=1)
        axes.axhline(1, color=_FULL, linewidth=1.2, zorder=1)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(base=2))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}\N{MULTIPLICATION SIGN}")
    )
    panels[0].set_ylabel("speed-up over the full source")
    ideal = Line2D([], [], color=_IDEAL, linestyle=":", label="1 / fraction kept (ideal)")
    full = Line2D([], [], color=_FULL, linewidth=1.2, label="full source")
    handles = [*_handles(styles, rows), full, ideal]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return _finish(figure, "speedup_vs_keep")


def _draw_speedup(
    axes: Axes, rows: Sequence[Row], style: tuple[str, str], place: int, key: str
) -> None:
    """Draw the speed-ups of one method. All finetuning modes share one pretraining.

    Lines of different methods nearly coincide, so each is drawn wider and below the one before.
    """
    size: dict[str, Any] = {"ms": 5 + 3 * place, "lw": 1.5 + 1.5 * place, "zorder": 3 - 0.1 * place}
    for hollow in (False, True):
        points: dict[float, float] = {}
        for row in rows:
            if _hollow(row) == hollow:
                points.setdefault(row.keep, getattr(row, key))
        keeps = sorted(points)
        axes.plot(keeps, [points[keep] for keep in keeps], **size, **_marks(style, hollow))


@mpl.rc_context(_RC)
def class_scores_plot(given: ClassScores, class_names: Sequence[str], place: int) -> Plot:
    """Plot one bar per source class in rank order, relevant classes in the method's colour.

    `place` is the position of the method, which chooses its colour.
    """
    order, scores = given.scores.ranking(), given.scores.scores
    color = _STYLES[place % len(_STYLES)][0]
    count, heights = len(order), scores[order]
    ranks = np.arange(1, count + 1)
    marked = given.relevant[order]
    named = count <= _MAX_NAMED
    figure = Figure(figsize=(8.8, 4.6 if named else 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 if count <= _MAX_GAPS else 1.0
    for chosen, shade in ((~marked, _IRRELEVANT), (marked, color)):
        axes.bar(ranks[chosen], heights[chosen], width, color=shade, linewidth=0)
    axes.set_xlim(0.2, count + 0.8)
    axes.set_ylim(min(0.0, heights.min() * 1.05), max(heights.max() * 1.05, 1e-9))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("score")
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_xlabel("source class, in rank order" if named else f"rank among {count} classes")
    if named:
        labels = [_shorten(class_names[index]) for index in order]
        axes.set_xticks(ranks, labels, rotation=60, ha="right", rotation_mode="anchor")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
    above = np.full(int(marked.sum()), 1.03)  # in axis heights: marks classes with score 0 too
    axes.plot(
        ranks[marked], above, "v", c=color, transform=axes.get_xaxis_transform(), clip_on=False
    )
    known = Line2D([], [], linestyle="", marker="v", color=color, label="relevant")
    other = Patch(color=_IRRELEVANT, label="not relevant")
    figure.legend(handles=[known, other], loc="outside upper center", ncols=2)
    return _finish(figure, f"class_scores_{given.method}")


def contact_sheet_png(pictures: Sequence[tuple[str, NDArray[np.uint8]]]) -> bytes:
    """Return a PNG of the pictures in a grid, at one height, each with its name below."""
    path = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(path, _LETTER, layout_engine=ImageFont.Layout.BASIC)
    columns, step = min(_COLUMNS, len(pictures)), _HEIGHT + 3 * _LETTER + 10
    sheet = Image.new("RGB", (columns * _TILE, -(-len(pictures) // columns) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, pixels) in enumerate(pictures):
        middle, top = number % columns * _TILE + _TILE // 2, number // columns * step
        scale = min(_HEIGHT / pixels.shape[0], (_TILE - 12) / pixels.shape[1])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, way)
        sheet.paste(image, (middle - size[0] // 2, top + (_HEIGHT - size[1]) // 2))
        for line, text in enumerate(textwrap.wrap(name, 14, max_lines=2, placeholder="…")):
            at = (middle, top + _HEIGHT + 6 + line * (_LETTER + 4))
            draw.text(at, text, fill="#222222", font=font, anchor="ma")
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()


def _shorten(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each method but the full source, in order of appearance."""
    methods = dict.fromkeys(row.method for row in rows if row.method != "full")
    return {method: _STYLES[i % len(_STYLES)] for i, method in enumerate(methods)}


def _hollow(row: Row) -> bool:
    return row.budget == "equal_iterations"


def _marks(style: tuple[str, str], hollow: bool) -> dict[str, Any]:
    color, marker = style
    face, line = ("white", "") if hollow else (color, "-")
    return {"color": color, "marker": marker, "markerfacecolor": face, "linestyle": line}


def _handles(styles: Mapping[str, tuple[str, str]], rows: Sequence[Row]) -> list[Line2D]:
    """Return the legend entries of the methods, and of hollow markers if there are any."""
    handles = [
        Line2D([], [], label=method_label(method), **_marks(style, hollow=False))
        for method, style in styles.items()
    ]
    if any(_hollow(row) for row in rows):
        marks = _marks((_FULL, "o"), hollow=True)
        handles.append(Line2D([], [], label="equal iterations (hollow)", **marks))
    return handles


def _keep_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """Make the axis logarithmic, with ticks at the measured values that are not too close."""
    keeps = sorted({row.keep for row in rows})
    span = max(np.log(keeps[-1] / keeps[0]), 0.1)
    ticks = keeps[:1]
    for keep in keeps[1:]:
        if np.log(keep / ticks[-1]) > 0.09 * span:
            ticks.append(keep)
    axes.set_xscale("log")
    axes.set_xlim(keeps[0] / (1 + 0.1 * span), keeps[-1] * (1 + 0.1 * span))
    axes.set_xticks(ticks, [f"{keep:g}" for keep in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("fraction of source classes kept")


def _finish(figure: Figure, name: str) -> Plot:
    png, svg = io.BytesIO(), io.BytesIO()
    dateless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # Characters that the font lacks show as boxes; the page has the names as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata=dateless)
    return Plot(name=name, svg=svg.getvalue(), png=png.getvalue())
