"""Images per second: raw images of 400 pixels, random resized crops of 160."""

from benchmarks.harness.dataset import Images
from benchmarks.harness.rows import Row
from benchmarks.loader.bench import Bench

FLOOR = 3.2


def measure(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.raw400, long_side=400, mode="raw")
    return bench.throughput("raw_rrc_throughput", images, FLOOR)
