"""Measure two sides in alternation, and report rows as JSON lines and a table."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from dp4tl_ffcv.utils import atomic_open, environment

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, measured on both sides. A `ratio` above 1 is better for ours."""

    figure: str
    unit: str
    """More is better for a rate (`.../s`), less for anything else."""
    ours: float | None
    other: float | None
    other_name: str
    ratio: float | None
    spread: tuple[float, float] | None = None
    """Lower and upper quartile of the rounds' ratios."""
    params: dict[str, Any] = field(default_factory=dict)

    def line(self, bench: str) -> str:
        """Return the row as a JSON line of the benchmark `bench`."""
        return json.dumps(rounded({"bench": bench, **asdict(self)}), allow_nan=False)


def compare(
    figure: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    other_name: str,
    **params: Any,
) -> Row:
    """Return medians of both sides, and median and quartiles of the rounds' ratios.

    There is no ratio if a side has no measurement, or one of 0.
    """
    pairs = list(zip(ours, other, strict=False))
    usable = bool(pairs) and min(map(min, pairs)) > 0
    ratios = [mine / its if unit.endswith("/s") else its / mine for mine, its in pairs if usable]
    spread = None
    if len(ratios) > 1:
        lower, _, upper = quantiles(ratios, n=4, method="inclusive")
        spread = (lower, upper)
    return Row(
        figure=figure,
        unit=unit,
        ours=median(ours) if ours else None,
        other=median(other) if other else None,
        other_name=other_name,
        ratio=median(ratios) if ratios else None,
        spread=spread,
        params={**params, "rounds": len(pairs)} if pairs else params,
    )


def alternate(*sides: Callable[[], _Result], rounds: int) -> tuple[list[_Result], ...]:
    """Call the sides in turn. Each round starts with the next side, so that all come first."""
    results: tuple[list[_Result], ...] = tuple([] for _ in sides)
    for number in range(rounds):
        for turn in range(len(sides)):
            at = (number + turn) % len(sides)
            results[at].append(sides[at]())
    return results


def publish(rows: Iterable[Row], bench: str, details: Sequence[str], out: Path | None) -> None:
    """Print rows as JSON lines on stdout and as a table on stderr; write the lines to `out`."""
    shown, lines = [], []
    for row in rows:
        shown.append(row)
        lines.append(row.line(bench))
        print(lines[-1], flush=True)
    progress("\n" + table(shown, details))
    if out:
        write_lines(out, {"bench": bench, "environment": environment()}, lines)


def write_lines(path: Path, head: Mapping[str, Any], lines: Iterable[str]) -> None:
    """Write a result file: a head, which names the machine, then one JSON line for each row."""
    with atomic_open(path) as stream:
        stream.write("".join(f"{line}\n" for line in (json.dumps(head), *lines)).encode())
    progress(f"written to {path}")


def table(rows: Sequence[Row], details: Sequence[str]) -> str:
    """Return the rows as aligned text. `details` names parameters to show next to the figure."""
    cells = [("figure", "what", "ours", "other", "unit", "ratio", "quartiles")]
    for row in rows:
        what = ", ".join(f"{key} {row.params[key]}" for key in details if key in row.params)
        spread = "" if row.spread is None else "{:.2f} to {:.2f}".format(*row.spread)
        values = (_shown(row.ours), _shown(row.other), row.unit, _shown(row.ratio))
        cells.append((row.figure, what, *values, spread))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def progress(text: str) -> None:
    """Print `text` on stderr."""
    print(text, file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    """Return a JSON value whose floats have six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
