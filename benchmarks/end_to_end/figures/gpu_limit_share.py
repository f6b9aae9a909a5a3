"""Images trained per second, against the same GPU training on pixels that are in its memory."""

from benchmarks.end_to_end.bench import SYNTHETIC, Bench, each_side, params_of
from benchmarks.harness.rows import Row, compare


def measure(bench: Bench) -> list[Row]:
    if not bench.scale.limit:
        return []
    return [
        compare(
            "gpu_limit_share",
            "images/s",
            bench.rates(cache, side),
            bench.rates(cache, bench.side(SYNTHETIC)),
            SYNTHETIC,
            **params_of(bench, cache, side),
        )
        for cache, side in each_side(bench)
    ]
