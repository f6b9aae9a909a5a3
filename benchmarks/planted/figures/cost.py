"""Seconds of scoring by each method, without and with the networks that it trains."""

from collections.abc import Iterator

from benchmarks.harness.rows import Row
from benchmarks.planted.bench import Bench


def measure(bench: Bench) -> Iterator[Row]:
    for method, target, scored in bench.first_scores():
        yield {
            "figure": "cost",
            "method": method,
            "target": target,
            "unit": scored.scores.unit,
            "scoring_seconds": scored.seconds,
            "training_seconds": scored.training_seconds,
        }
