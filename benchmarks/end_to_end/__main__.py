"""Pretraining on what is retained, against the full source: time, waiting, bytes.

    python -m benchmarks.end_to_end             # all figures, into benchmarks/results/
    python -m benchmarks.end_to_end --quick     # fewer sides on less data, printed only

Where torch finds a GPU, ResNet-18 and ResNet-50 are trained at 160 pixels; else a ResNet-8 at 64
pixels on the processor, which loading then shares. The retained classes are random: which ones
they are does not change the time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.end_to_end.figures import BENCH, NAMES, measure
from benchmarks.end_to_end.runs import scales
from benchmarks.harness.measure import publish
from dp4tl_ffcv.utils import one_line_errors

FOLDER = Path(__file__).resolve().parents[1] / "results"
RESULTS = FOLDER / "end_to_end.jsonl"
GPU_RESULTS = FOLDER / "end_to_end_gpu.jsonl"
DETAILS = ("arch", "keep", "how", "page_cache", "method")  # beside a figure's name in the table


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    quick: bool = False
    """Measure on less data and one share, on a CPU in less than a minute; the figures are rough.
    Those of a cold page cache, such as the bytes read, are left out there."""
    only: tuple[Literal[NAMES], ...] = ()  # type: ignore[valid-type]  # made from the measurements
    """Figures to measure; none names all."""
    data: Path = Path("runs/bench")
    """Folder that keeps the betons for the next run."""
    out: Path | None = None
    """Where the JSON lines go as well; None keeps those of a full run of all figures."""


def main(config: Config) -> None:
    """Measure, print JSON lines on stdout and a table on stderr, and keep the lines."""
    whole = not config.quick and not config.only
    results = GPU_RESULTS if torch.cuda.is_available() else RESULTS
    rows = measure(scales(quick=config.quick), config.data, config.only or NAMES)
    publish(rows, BENCH, DETAILS, config.out or (results if whole else None))


if __name__ == "__main__":
    with one_line_errors("benchmarks.end_to_end"):
        main(tyro.cli(Config, description=__doc__))
