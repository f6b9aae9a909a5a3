"""Time to plan an epoch."""

from statistics import median

from benchmarks.harness.rows import Row
from benchmarks.loader.bench import ORDERS, Bench, params, row
from benchmarks.loader.sides import Setting

KEEPS = (1.0, 0.1)
PLANNED_EPOCHS = 5


def measure(bench: Bench) -> list[Row]:
    rows = []
    for order in ORDERS[1:]:
        whole: list[float] = []
        for keep in KEEPS:
            setting = Setting(
                beton=bench.big, batch_size=1024, keep=keep, order=order, from_disk=True
            )
            plans = bench.plans(setting, PLANNED_EPOCHS)
            seconds = [[plan[0] for plan in side] for side in plans]
            medians = [median(side) for side in seconds]
            whole = whole or medians
            ours, other = (few / all_ for few, all_ in zip(medians, whole, strict=True))
            about = params(setting, ours_of_keep_1=ours, other_of_keep_1=other)
            rows.append(row("planning_seconds", "s", *seconds, **about))
    return rows
