"""Time and memory to construct a loader and plan its first epoch, in a new process."""

from dataclasses import replace
from typing import Any

from benchmarks.harness.rows import Row
from benchmarks.harness.worker import Worker
from benchmarks.loader.bench import Bench, params, row
from benchmarks.loader.sides import Setting

FIGURES = ("construct_seconds", "construct_bytes")


def measure(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.big, batch_size=1024, from_disk=True)

    def once(side: Worker) -> Any:
        side.call("warm_up", replace(setting, beton=bench.small))
        return side.call("construct", setting)

    sides = bench.in_new_processes(once)
    about = params(setting, includes="constructor, order, plan of the first epoch's reads")
    return [
        row(figure, unit, *([result[column] for result in side] for side in sides), **about)
        for column, (figure, unit) in enumerate(zip(FIGURES, ("s", "bytes"), strict=True))
    ]
