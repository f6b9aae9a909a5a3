"""Time to the first batch of a process's second loader."""

from benchmarks.harness.rows import Row
from benchmarks.loader.bench import Bench, params, row
from benchmarks.loader.sides import Setting


def measure(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.small, keep=0.5, batch_size=64)
    sides = bench.in_new_processes(lambda side: side.call("second_loader", setting)[1])
    return [row("second_loader_seconds", "s", *sides, **params(setting))]
