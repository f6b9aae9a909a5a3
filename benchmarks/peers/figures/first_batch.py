"""Processor seconds from the start of Python to the first batch."""

from statistics import median
from typing import Any

from benchmarks.harness.rows import Row
from benchmarks.peers.bench import Bench
from benchmarks.peers.peer import OURS

FLOORS = {"grain": 1 / 1.5}


def measure(bench: Bench) -> list[Row]:
    seconds = {name: [each.cpu for each in side] for name, side in bench.starts.items()}
    walls = {name: median(each.wall for each in side) for name, side in bench.starts.items()}
    rows: list[dict[str, Any]] = bench.rows("first_batch", "processor s", seconds, floors=FLOORS)
    for row in rows:
        row["params"] |= {
            "ours_wall_s": walls[OURS],
            "other_wall_s": walls[row["params"]["peer"]],
        }
    return rows
