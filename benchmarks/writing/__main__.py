"""`ffcv.DatasetWriter` and `write_beton` in alternation, and `compact` beside `cp`: time, memory.

    python -m benchmarks.writing            # all figures, into benchmarks/results/writing.jsonl
    python -m benchmarks.writing --quick    # the same on less data, printed only

Both sides read the same files, which are in memory, with the same number of workers, and write new
files to the same disk. `write_beton` and `compact` flush these to it before they are done; ffcv
does not. Peak memory is that of the process and all its workers, sampled 20 times a second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.harness.measure import publish
from benchmarks.writing.figures import BENCH, NAMES, QUICK, Scale, measure
from dp4tl_ffcv.utils import one_line_errors

RESULTS = Path(__file__).resolve().parents[1] / "results" / "writing.jsonl"
DETAILS = ("how", "flush", "images", "keep")  # what the table says beside a figure's name


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    quick: bool = False
    """Measure on less data, in less than 90 seconds; the figures are rough."""
    only: tuple[Literal[NAMES], ...] = ()  # type: ignore[valid-type]  # made from the measurements
    """Figures to measure; none names all."""
    data: Path = Path("runs/bench")
    """Folder that keeps the images for the next run; what is written beside them is deleted."""
    out: Path | None = None
    """Where the JSON lines go as well; None keeps those of a full run of all figures."""


def main(config: Config) -> None:
    """Measure, print JSON lines on stdout and a table on stderr, and keep the lines."""
    scale = QUICK if config.quick else Scale()
    whole = not config.quick and not config.only
    rows = measure(scale, config.data, config.only or NAMES)
    publish(rows, BENCH, DETAILS, config.out or (RESULTS if whole else None))


if __name__ == "__main__":
    with one_line_errors("benchmarks.writing"):
        main(tyro.cli(Config, description=__doc__))
