"""Seconds of an epoch, against the retained fraction of the full source's seconds."""

from benchmarks.end_to_end.bench import FULLS, Bench, against_ideal, each_side
from benchmarks.harness.rows import Row, compare


def measure(bench: Bench) -> list[Row]:
    rows = []
    for cache, side in each_side(bench):
        if side.how not in FULLS:
            ours, ideal, params = against_ideal(bench, cache, side)
            rows.append(compare("speedup_of_ideal", "s", ours, ideal, "full x keep", **params))
    return rows
