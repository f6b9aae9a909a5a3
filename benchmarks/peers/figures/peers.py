"""Images per second of processor time."""

from benchmarks.harness.rows import Row
from benchmarks.peers.bench import Bench

FLOOR = 2.0


def measure(bench: Bench) -> list[Row]:
    rates = {name: [each.cpu for each in side] for name, side in bench.epochs.items()}
    floors = dict.fromkeys(rates, FLOOR)
    return bench.rows("peers", "images/processor s", rates, floors=floors)
