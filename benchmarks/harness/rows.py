"""Measure two sides in alternation, and report rows as JSON lines and a table."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from benchmarks.harness.timing import Timing
from dp4tl_ffcv.utils import atomic_open, environment

_Result = TypeVar("_Result")
Row = dict[str, Any]
"""One figure, measured on both sides. A `ratio` above 1 is better for ours."""
Quartiles = tuple[float, float]
RATES = ("/s", "/processor s")  # ends of the units of which more is better


def compare(
    figure: str,
    unit: str,
    ours: Sequence[float] | Sequence[Timing],
    other: Sequence[float] | Sequence[Timing],
    other_name: str,
    *,
    floor: float | None = None,
    **params: Any,
) -> Row:
    """Return medians of both sides, and median and quartiles of the rounds' ratios.

    More is better for a rate (see `RATES`), less for anything else. There is no ratio if a
    measurement is 0. A `Timing` is compared by the clock, as `ratio`, and by the processor time of
    the process tree, as `cpu_ratio`.

    Args:
        figure: name of the figure.
        unit: unit of both sides.
        ours: our measurement in each round.
        other: the other side's measurement in each round. The last round may lack a side.
        other_name: name of the other side.
        floor: `ratio` to reach.
        **params: what was measured, and how.
    """
    pairs = list(zip(_wall(ours), _wall(other), strict=False))
    ratio, spread = _ratio(unit, pairs)
    row = {
        "figure": figure,
        "unit": unit,
        "ours": median(_wall(ours)),
        "other": median(_wall(other)),
        "other_name": other_name,
        "ratio": ratio,
        "spread": spread,
    }
    if isinstance(ours[0], Timing):
        processor = [(mine.cpu, its.cpu) for mine, its in zip(ours, other, strict=False)]
        row["cpu_ratio"], row["cpu_spread"] = _ratio(unit, processor)
    if floor is not None:
        row |= {"floor": floor, "verdict": verdict(floor, spread)}
    return {**row, "params": {**params, "rounds": len(pairs)}}


def verdict(floor: float, spread: Quartiles | None) -> str:
    """Return whether a ratio with these quartiles reaches `floor`, misses it, or may do either."""
    if spread is None or spread[0] < floor <= spread[1]:
        return "undecided"
    return "reached" if floor <= spread[0] else "missed"


def _wall(values: Sequence[float] | Sequence[Timing]) -> list[float]:
    return [value.wall if isinstance(value, Timing) else value for value in values]


def _ratio(
    unit: str, pairs: Sequence[tuple[float, float]]
) -> tuple[float | None, Quartiles | None]:
    """Return median and quartiles of the pairs' ratios."""
    if not all(map(all, pairs)):
        return None, None
    ratios = [mine / its if unit.endswith(RATES) else its / mine for mine, its in pairs]
    quartiles = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else None
    return median(ratios), quartiles and (quartiles[0], quartiles[2])


def alternate(*sides: Callable[[], _Result], rounds: int) -> tuple[list[_Result], ...]:
    """Call the sides in turn. Each round starts with the next side, so that all come first."""
    results: tuple[list[_Result], ...] = tuple([] for _ in sides)
    for number in range(rounds):
        for turn in range(len(sides)):
            at = (number + turn) % len(sides)
            results[at].append(sides[at]())
    return results


def publish(
    rows: Iterable[Row], bench: str, details: Sequence[str], out: Path | None, **facts: Any
) -> None:
    """Print rows as JSON lines on stdout and as a table on stderr; write the lines to `out`.

    The first line of the file describes the machine, and holds the facts. Without details, the rows
    compare nothing, and there is no table.
    """
    shown, lines = [], []
    for row in rows:
        shown.append(row)
        lines.append(json.dumps(rounded({"bench": bench, **row}), allow_nan=False))
        print(lines[-1], flush=True)
    if details:
        progress("\n" + table(shown, details))
    if out:
        first = json.dumps({"bench": bench, "environment": environment(), **facts})
        with atomic_open(out) as stream:
            stream.write("".join(f"{line}\n" for line in (first, *lines)).encode())
        progress(f"written to {out}")


COLUMNS = (
    "figure", "what", "ours", "other", "unit", "ratio", "quartiles", "processor time",
    "quartiles", "floor",
)  # fmt: skip


def table(rows: Sequence[Row], details: Sequence[str]) -> str:
    lines = []
    for row in rows:
        params = row["params"]
        what = ", ".join(f"{key} {params[key]}" for key in details if key in params)
        sides = (_shown(row["ours"]), _shown(row["other"]), row["unit"])
        wall = (_shown(row["ratio"]), _quartiles(row["spread"]))
        processor = ("", "")
        if "cpu_ratio" in row:
            processor = (_shown(row["cpu_ratio"]), _quartiles(row["cpu_spread"]))
        floor = f"{row['floor']:g} {row['verdict']}" if "floor" in row else ""
        lines.append((row["figure"], what, *sides, *wall, *processor, floor))
    return markdown(COLUMNS, lines)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return "\n".join([head, f"|{'---|' * len(columns)}", *lines])


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _quartiles(spread: Quartiles | None) -> str:
    return "{:.2f} to {:.2f}".format(*spread) if spread else ""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
