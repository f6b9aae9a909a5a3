"""Seconds of an epoch, against the retained fraction of the full source's seconds."""

from benchmarks.end_to_end.bench import FULLS, Bench
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> list[Row]:
    rows = []
    for cache, side in bench.each_side():
        if bench.scale.full and side.how not in FULLS:
            ours, ideal, more = bench.against_ideal(cache, side)
            about = ("speedup_of_ideal", "s", cache, side)
            rows.append(bench.row(*about, ideal, "full x keep", ours, **more))
    return rows
