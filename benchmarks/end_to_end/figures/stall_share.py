"""Fraction of an epoch in which training waits for the loader, against stock ffcv."""

from benchmarks.end_to_end.bench import Bench
from benchmarks.end_to_end.sides import Side
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> list[Row]:
    def shares(cache: str, side: Side) -> list[float]:
        return [epoch.waited / epoch.seconds for epoch in bench.epochs[cache][side]]

    return bench.against_stock("stall_share", "share", shares)
