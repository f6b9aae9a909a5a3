"""Bytes read in an epoch with a cold page cache, against the bytes of the retained samples."""

from benchmarks.end_to_end.bench import Bench, each_side, params_of
from benchmarks.harness.rows import Row, compare


def measure(bench: Bench) -> list[Row]:
    sizes = bench.index.sample_bytes()
    rows = []
    for cache, side in each_side(bench):
        if cache == "cold":  # a mapped file in the page cache is not read
            read = [float(epoch.read) for epoch in bench.epochs[cache][side]]
            least = [float(sizes[bench.retained(side.keep)].sum())] * len(read)
            params = params_of(bench, cache, side)
            rows.append(compare("bytes_read", "bytes", read, least, "bytes retained", **params))
    return rows
