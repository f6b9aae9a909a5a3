"""Bytes read in an epoch with a cold page cache, against the bytes of the retained samples."""

from benchmarks.end_to_end.bench import Bench
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> list[Row]:
    sizes = bench.index.sample_bytes()
    rows = []
    for cache, side in bench.each_side():
        if cache == "cold":  # a mapped file in the page cache is not read
            read = [float(epoch.read) for epoch in bench.epochs[cache][side]]
            least = [float(sizes[bench.retained(side.keep)].sum())] * len(read)
            about = ("bytes_read", "bytes", cache, side)
            rows.append(bench.row(*about, least, "bytes retained", read))
    return rows
