"""Does it find the right classes? Run every method on targets whose relevant classes are known.

    python -m benchmarks.planted             # all runs, into benchmarks/results/planted.jsonl
    python -m benchmarks.planted --quick     # a few runs, printed only
    python -m benchmarks.planted --report    # run nothing; make table and figure from the results

The source is `writers.digits`: ten digits in eight renderings. Each method scores its classes or
samples. The best are pretrained on, for as many epochs as the full source, and the network is
finetuned on the target. The next call reuses finished runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from dp4tl_ffcv.utils import environment, one_line_errors

RESULTS = Path(__file__).resolve().parents[1] / "results" / "planted.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the planted benchmark."""

    quick: bool = False
    """Run a few methods on one target with one seed, in less than 90 seconds. Only print."""
    report: bool = False
    """Run nothing. Make the table and the figure of benchmarks/README.md from the results."""
    data: Path = Path("runs/planted")
    """Folder that keeps betons, scores and finished runs."""
    processes: int = 2
    """Number of runs at a time, each on one core."""
    out: Path | None = None
    """File for the JSON lines. By default, a full run writes to benchmarks/results/."""


def main(config: Config) -> None:
    """Do the unfinished runs, print and keep the rows; or make the report."""
    from benchmarks.harness.rows import progress, rounded, write_lines

    if config.report:
        from benchmarks.planted.report import write_report

        progress(f"written to {write_report(config.out or RESULTS)}")
        return
    from benchmarks.planted.cases import BENCH, QUICK, Scale, measure

    scale = QUICK if config.quick else Scale()
    folder = config.data / "quick" if config.quick else config.data
    # Each process compiles, which would take longer than the few quick runs.
    processes = 1 if config.quick else config.processes
    lines = []
    for row in measure(scale, folder, processes):
        lines.append(json.dumps(rounded({"bench": BENCH, **row})))
        print(lines[-1], flush=True)
    if out := config.out or (None if config.quick else RESULTS):
        head = {"bench": BENCH, "environment": environment(), "params": scale.params()}
        write_lines(out, head, lines)


if __name__ == "__main__":
    settings = tyro.cli(Config, prog="python -m benchmarks.planted", description=__doc__)
    with one_line_errors():
        main(settings)
