"""Images trained per second, against the same GPU training on pixels that are in its memory."""

from benchmarks.end_to_end.bench import SYNTHETIC, Bench
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> list[Row]:
    rows = []
    for cache, side in bench.each_side() if bench.scale.limit else ():
        limit, ours = bench.rates(cache, bench.side(SYNTHETIC)), bench.rates(cache, side)
        about = ("gpu_limit_share", "images/s", cache, side)
        rows.append(bench.row(*about, limit, SYNTHETIC, ours))
    return rows
