"""Images trained per second, against a loader that does not wait for the GPU's copies.

Without the guard, the GPU may train on pixels of a later batch: see `tests/loading/test_gpu.py`.
"""

from benchmarks.end_to_end.bench import PRUNED, UNGUARDED, Bench
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> list[Row]:
    rows = []
    for cache, side in bench.each_side() if bench.scale.limit else ():
        if side.how == PRUNED:
            other = bench.rates(cache, bench.side(UNGUARDED, side.keep))
            about = ("guard_cost", "images/s", cache, side)
            rows.append(bench.row(*about, other, UNGUARDED, bench.rates(cache, side)))
    return rows
