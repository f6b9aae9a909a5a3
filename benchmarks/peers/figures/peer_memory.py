"""Most memory of all processes in the first epoch."""

from benchmarks.harness.rows import Row
from benchmarks.peers.bench import Bench


def measure(bench: Bench) -> list[Row]:
    peaks = {name: [epoch.peak] for name, epoch in bench.cold.items()}
    return bench.rows("peer_memory", "bytes", peaks, counted="anonymous and shared memory")
