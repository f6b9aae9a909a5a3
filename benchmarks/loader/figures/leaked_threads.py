"""Threads that remain after a loop over a loader was left early."""

from benchmarks.harness.rows import Row
from benchmarks.loader.bench import Bench, both, params, single
from benchmarks.loader.sides import Setting

EARLY_BREAKS = 5


def measure(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.small, keep=1.0, batch_size=8, from_disk=True, resolution=None)
    left = []
    with both() as sides:  # leaked threads would slow down what other figures measure
        for side in sides:
            side.call("warm_up", setting)
            side.call("open", setting)
            left.append(side.call("leave_early", EARLY_BREAKS))
    return [single("leaked_threads", "threads", left, **params(setting, breaks=EARLY_BREAKS))]
