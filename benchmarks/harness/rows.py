"""Measure two sides in alternation, and report rows as JSON lines and a table."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from dp4tl_ffcv.utils import atomic_open, environment

_Result = TypeVar("_Result")
Row = dict[str, Any]
"""One figure, measured on both sides. A `ratio` above 1 is better for ours."""


def compare(
    figure: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    other_name: str,
    **params: Any,
) -> Row:
    """Return medians of both sides, and median and quartiles of the rounds' ratios.

    More is better for a rate (`unit` ends with `/s`), less for anything else. There is no ratio if
    a measurement is 0.
    """
    pairs = list(zip(ours, other, strict=False))  # the last round may lack a side
    ratios = None
    if all(map(all, pairs)):
        ratios = [mine / its if unit.endswith("/s") else its / mine for mine, its in pairs]
    quartiles = quantiles(ratios, n=4, method="inclusive") if ratios and len(pairs) > 1 else None
    return {
        "figure": figure,
        "unit": unit,
        "ours": median(ours),
        "other": median(other),
        "other_name": other_name,
        "ratio": median(ratios) if ratios else None,
        "spread": (quartiles[0], quartiles[2]) if quartiles else None,
        "params": {**params, "rounds": len(pairs)},
    }


def alternate(*sides: Callable[[], _Result], rounds: int) -> tuple[list[_Result], ...]:
    """Call the sides in turn. Each round starts with the next side, so that all come first."""
    results: tuple[list[_Result], ...] = tuple([] for _ in sides)
    for number in range(rounds):
        for turn in range(len(sides)):
            at = (number + turn) % len(sides)
            results[at].append(sides[at]())
    return results


def publish(
    rows: Iterable[Row], head: Mapping[str, Any], details: Sequence[str], out: Path | None
) -> None:
    """Print rows as JSON lines on stdout and as a table on stderr; write the lines to `out`.

    The first line of the file is `head` with a description of the machine.
    """
    shown, lines = [], []
    for row in rows:
        shown.append(row)
        lines.append(json.dumps(rounded({"bench": head["bench"], **row}), allow_nan=False))
        print(lines[-1], flush=True)
    if details:
        progress("\n" + table(shown, details))
    if out:
        first = json.dumps({"bench": head["bench"], "environment": environment(), **head})
        with atomic_open(out) as stream:
            stream.write("".join(f"{line}\n" for line in (first, *lines)).encode())
        progress(f"written to {out}")


def table(rows: Sequence[Row], details: Sequence[str]) -> str:
    lines = []
    for row in rows:
        params, spread = row["params"], row["spread"]
        what = ", ".join(f"{key} {params[key]}" for key in details if key in params)
        values = (_shown(row["ours"]), _shown(row["other"]), row["unit"], _shown(row["ratio"]))
        quartiles = "{:.2f} to {:.2f}".format(*spread) if spread else ""
        lines.append((row["figure"], what, *values, quartiles))
    return markdown(("figure", "what", "ours", "other", "unit", "ratio", "quartiles"), lines)


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


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
