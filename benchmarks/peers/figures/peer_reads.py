"""Bytes read from the disk in an epoch whose files are not in the page cache."""

from benchmarks.harness.rows import Row
from benchmarks.peers.bench import Bench


def measure(bench: Bench) -> list[Row]:
    read = {name: [epoch.read] for name, epoch in bench.cold.items()}
    return bench.rows("peer_reads", "bytes", read)
