"""Images trained per second, against stock ffcv on the same samples."""

from benchmarks.end_to_end.bench import Bench
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> list[Row]:
    return bench.against_stock("images_per_second", "images/s", bench.rates)
