"""Figures of the report: small SVG panels that follow the page's colours, light or dark.

A panel holds no text of the user, so that nothing in it needs escaping. The same input gives the
same bytes, and the caller's plots and backend are left alone.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .curves import Curve
from .findings import Row
from .names import MARGIN

# Okabe and Ito's palette without black, safe for colour-blind readers and on black. Seven colours
# and eight markers repeat only after 56 methods.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7F2A")
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
# Placeholders that become CSS colours of the page.
_INK, _LINE = "#010203", "#040506"
_PAGE_COLORS = {_INK: "currentColor", _LINE: "var(--line)"}
_POINTS = 100  # percentage points
_ASIDE = 0.015  # methods are drawn next to each other, this fraction of keep apart
_MOST_POINTS = 200  # of a curve
_RC: Any = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")},
    "svg.hashsalt": "dp4tl_ffcv",  # the same ids in the SVG in every run
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINE,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color",
                     "ytick.color"), _INK),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """Colour and marker of a method."""

    color: str
    marker: str

    @property
    def sign(self) -> str:
        """The marker as a character, for the legend."""
        return _MARKERS[self.marker]


def styles_of(methods: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method."""
    markers = list(_MARKERS)
    return {
        method: Style(_COLORS[place % len(_COLORS)], markers[place % len(markers)])
        for place, method in enumerate(methods)
    }


class Panels:
    """Draws panels for one page. Ids are unique among the panels of an object."""

    def __init__(self, methods: Sequence[str]) -> None:
        self._numbers, self.styles = count(), styles_of(methods)

    def difference(self, rows: Sequence[Row]) -> str:
        """Plot the difference to the full source by fraction kept, with its 95 % interval."""

        def draw(axes: Axes) -> None:
            axes.axhline(0, color=_INK, linewidth=1.2)
            axes.axhline(-_POINTS * MARGIN, color=_INK, linewidth=1, linestyle="--")
            self._intervals(axes, rows, _kept, "mean", ("low", "high"))
            self._keep_axis(axes, rows)
            axes.set_ylabel("difference to the full source, points")

        return self._panel(draw)

    def cost(self, rows: Sequence[Row]) -> str:
        """Plot mean accuracy by the time of pretraining, both with the full source's."""

        def draw(axes: Axes) -> None:
            full = rows[0]
            if full["full_accuracy_low"] is not None:
                low, high = (_POINTS * full[f"full_accuracy_{end}"] for end in ("low", "high"))
                axes.axhspan(low, high, color=_INK, alpha=0.15, linewidth=0)
            axes.plot(100, _POINTS * full["full_accuracy"], "*", color=_INK, markersize=11)
            ends = ("accuracy_low", "accuracy_high")
            self._intervals(axes, rows, _share_of_time, "accuracy", ends)
            axes.set_xlabel("pretraining time, % of the full source's")
            axes.set_ylabel("test accuracy, %")

        return self._panel(draw)

    def speedup(self, rows: Sequence[Row]) -> str:
        """Plot the speed-up by fraction kept, without and (dotted) with the cost of selection."""

        def draw(axes: Axes) -> None:
            for method, mine in self._by_method(rows):
                x = [row["kept"] for row in mine]
                style = self.styles[method]
                for name, line, face in (
                    ("speedup", "-", style.color),
                    ("speedup_with_selection", ":", "none"),
                ):
                    axes.plot(
                        x, [row[name] for row in mine], line, color=style.color,
                        marker=style.marker, markerfacecolor=face,
                    )  # fmt: skip
            ends = np.array([min(row["kept"] for row in rows), 1.0])
            axes.plot(ends, 1 / ends, "--", color=_INK, linewidth=0.8, zorder=1)
            axes.axhline(1, color=_INK, linewidth=1.2, zorder=1)
            self._keep_axis(axes, rows)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(base=2))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
            axes.set_ylabel("speed-up over the full source")

        return self._panel(draw)

    def curves(self, curves: Mapping[str, Curve], full: Curve | None, what: str) -> str:
        """Plot learning curves by method, and that of the full source."""

        def draw(axes: Axes) -> None:
            if full is not None:
                axes.plot(*_thinned(full), color=_INK, linewidth=2)
            for method, curve in curves.items():
                if method in self.styles:
                    style = self.styles[method]
                    axes.plot(*_thinned(curve), color=style.color, linewidth=1.3)
                    axes.plot(curve.steps[-1:], curve.values[-1:], style.marker, color=style.color)
            axes.set_xlabel("step")
            axes.set_ylabel(what)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

        return self._panel(draw)

    # -- parts -----------------------------------------------------------------------------------
    def _intervals(
        self,
        axes: Axes,
        rows: Sequence[Row],
        place: Callable[[Row], float],
        name: str,
        ends: tuple[str, str],
    ) -> None:
        """Draw a line and 95 % intervals for each method, in percent."""
        middle = (len(self.styles) - 1) / 2
        for number, (method, mine) in enumerate(self._by_method(rows)):
            style = self.styles[method]
            x = [place(row) * (1 + _ASIDE * (number - middle)) for row in mine]
            y = np.array([_POINTS * row[name] for row in mine])
            # One seed has no interval.
            bars = [[row[name] if row[end] is None else row[end] for row in mine] for end in ends]
            axes.errorbar(
                x, y, yerr=np.abs(_POINTS * np.array(bars) - y), color=style.color,
                marker=style.marker, markersize=5, linewidth=1.3, elinewidth=1, capsize=2,
            )  # fmt: skip
        means = [_POINTS * row[name] for row in rows]
        widths = [_POINTS * (row[ends[1]] - row[name]) for row in rows if row[ends[1]] is not None]
        # Few seeds give intervals that would flatten all differences: they are cut off.
        room = max(2.0, min(float(np.median(widths or [0])), 3 * (max(means) - min(means))))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(means) - room), min(high, max(means) + room))

    def _by_method(self, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
        return [
            (method, sorted((r for r in rows if r["method"] == method), key=_kept))
            for method in self.styles
            if any(row["method"] == method for row in rows)
        ]

    def _keep_axis(self, axes: Axes, rows: Sequence[Row]) -> None:
        """Make the axis logarithmic, with ticks at the measured values that are not too close."""
        keeps = sorted({row["kept"] for row in rows})
        span = max(np.log(keeps[-1] / keeps[0]), 0.1)
        ticks = keeps[:1]
        for keep in keeps[1:]:
            if np.log(keep / ticks[-1]) > 0.09 * span:
                ticks.append(keep)
        axes.set_xscale("log")
        axes.set_xlim(keeps[0] / (1 + 0.15 * span), keeps[-1] * (1 + 0.15 * span))
        axes.set_xticks(ticks, [f"{keep:.3g}" for keep in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("fraction kept")

    def _panel(self, draw: Callable[[Axes], None]) -> str:
        with mpl.rc_context(_RC):
            figure = Figure(figsize=(4.4, 3.2))
            draw(figure.add_axes((0.16, 0.16, 0.82, 0.8)))  # a computed layout takes twice the time
            svg = io.BytesIO()
            dateless: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(svg, format="svg", metadata=dateless, transparent=True)
        return _inline(svg.getvalue().decode(), f"panel{next(self._numbers)}-")


def _kept(row: Row) -> float:
    return float(row["kept"])


def _share_of_time(row: Row) -> float:
    return float(100 * row["pretrain_seconds"] / row["full_pretrain_seconds"])


def _thinned(curve: Curve) -> tuple[Any, Any]:
    chosen = np.unique(np.linspace(0, len(curve.steps) - 1, _MOST_POINTS).astype(int))
    return curve.steps[chosen], curve.values[chosen]


def _inline(svg: str, prefix: str) -> str:
    """Return an SVG as a part of a page: with its own ids, and colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r' id="[a-z_]+\d*_\d+"', "", svg)  # names of parts, to which nothing refers
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for placeholder, color in _PAGE_COLORS.items():
        svg = svg.replace(placeholder, color)
    return re.sub(r"\n\s*", "\n", svg)
