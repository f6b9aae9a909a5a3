"""Fraction of the votes of LM and FM that the classes of each rendering get."""

from collections.abc import Iterator

from benchmarks.harness.rows import Row
from benchmarks.planted.bench import Bench
from benchmarks.planted.table import OURS
from benchmarks.planted.variants import COMBINED
from writers import digits


def measure(bench: Bench) -> Iterator[Row]:
    for method, target, scored in bench.first_scores():
        if method in OURS and target != COMBINED:
            votes = scored.scores.scores.reshape(len(digits.RENDERINGS), -1).sum(axis=1)
            shares = (votes / votes.sum()).tolist()
            yield {
                "figure": "votes",
                "method": method,
                "target": target,
                "relevant": digits.TARGETS[target].rendering,
                "votes": dict(zip(digits.RENDERINGS, shares, strict=True)),
            }
