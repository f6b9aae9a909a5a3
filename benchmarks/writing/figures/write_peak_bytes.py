"""Peak memory of writing: growth of a process and its workers from before the listing."""

from functools import partial
from statistics import median

import numpy as np

from benchmarks.harness.bench import CORES
from benchmarks.harness.memory import TreePeak, tree_bytes
from benchmarks.harness.rows import Row
from benchmarks.harness.worker import Worker
from benchmarks.writing.bench import Bench, row
from benchmarks.writing.sides import Job


def measure(bench: Bench) -> list[Row]:
    numbers = bench.scale.peak
    rounds = [[_peaks(bench, number) for number in numbers] for _ in range(bench.scale.peaks)]
    # Growth and size of the listing, by number of images, side and round.
    growth, listed = np.array(rounds).transpose(3, 1, 2, 0)
    peak = partial(row, "write_peak_bytes", workers=CORES, long_side=64)
    rows = []
    for number, sides, listings in zip(numbers, growth.tolist(), listed, strict=True):
        ours, other = map(median, listings.tolist())
        about = {"ours_listing_bytes": ours, "other_listing_bytes": other}
        rows.append(peak("bytes", *sides, images=number, **about))
    few, many = numbers
    each = ((growth[1] - growth[0]) / (many - few)).tolist()
    return [*rows, peak("bytes/image", *each, images=many, how=f"each image above {few:,}")]


def _peaks(bench: Bench, number: int) -> list[tuple[int, int]]:
    job = Job(files=bench.small, num_samples=number)
    with bench.both() as sides:
        return [_peak(side, job, bench) for side in sides]


def _peak(side: Worker, job: Job, bench: Bench) -> tuple[int, int]:
    """Return the peak growth, and the growth that the listing causes, in bytes."""
    side.call("settle")
    with TreePeak(side.session) as memory:
        side.call("list_files", job)
        listed = tree_bytes(side.session) - memory.start
        side.call("write", bench.outputs / "peak.beton")
    return memory.growth, listed
