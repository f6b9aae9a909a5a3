"""Images trained per second, against stock ffcv on the same samples."""

from benchmarks.end_to_end.bench import Bench, pairs, params_of
from benchmarks.harness.rows import Row, compare


def measure(bench: Bench) -> list[Row]:
    return [
        compare(
            "images_per_second",
            "images/s",
            bench.rates(cache, side),
            bench.rates(cache, other),
            other.how,
            **params_of(bench, cache, side),
        )
        for cache, side, other in pairs(bench)
    ]
