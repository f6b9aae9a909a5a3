"""Fraction of an epoch in which training waits for the loader, against stock ffcv."""

from benchmarks.end_to_end.bench import Bench, pairs, params_of
from benchmarks.end_to_end.sides import Epoch
from benchmarks.harness.rows import Row, compare


def measure(bench: Bench) -> list[Row]:
    return [
        compare(
            "stall_share",
            "share",
            _shares(bench.epochs[cache][side]),
            _shares(bench.epochs[cache][other]),
            other.how,
            **params_of(bench, cache, side),
        )
        for cache, side, other in pairs(bench)
    ]


def _shares(epochs: list[Epoch]) -> list[float]:
    return [epoch.waited / epoch.seconds for epoch in epochs]
