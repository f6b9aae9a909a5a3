"""Scoring and what it could be replaced by, in alternation: time.

    python -m benchmarks.scoring            # all figures, into benchmarks/results/scoring.jsonl
    python -m benchmarks.scoring --quick    # the same on less data, printed only

Both sides work on the same arrays with the same number of threads; every figure compares their
results, and is an error where these differ.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.harness.measure import publish
from benchmarks.scoring.figures import BENCH, NAMES, QUICK, Scale, measure
from dp4tl_ffcv.utils import one_line_errors

RESULTS = Path(__file__).resolve().parents[1] / "results" / "scoring.jsonl"
DETAILS = ("how", "targets", "samples", "images")  # what the table says beside a figure's name


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    quick: bool = False
    """Measure on less data, in less than 60 seconds; the figures are rough."""
    only: tuple[Literal[NAMES], ...] = ()  # type: ignore[valid-type]  # made from the measurements
    """Figures to measure; none names all."""
    data: Path = Path("runs/bench")
    """Folder that keeps features and tables for the next run."""
    out: Path | None = None
    """Where the JSON lines go as well; None keeps those of a full run of all figures."""


def main(config: Config) -> None:
    """Measure, print JSON lines on stdout and a table on stderr, and keep the lines."""
    scale = QUICK if config.quick else Scale()
    whole = not config.quick and not config.only
    rows = measure(scale, config.data, config.only or NAMES)
    publish(rows, BENCH, DETAILS, config.out or (RESULTS if whole else None))


if __name__ == "__main__":
    with one_line_errors("benchmarks.scoring"):
        main(tyro.cli(Config, description=__doc__))
