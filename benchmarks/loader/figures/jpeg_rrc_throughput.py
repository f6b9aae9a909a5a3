"""Images per second: JPEGs of 400 pixels, random resized crops of 160."""

from benchmarks.harness.dataset import Images
from benchmarks.harness.rows import Row
from benchmarks.loader.bench import Bench

FLOOR = 2.2


def measure(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.jpeg400, long_side=400)
    return bench.throughput("jpeg_rrc_throughput", images, FLOOR)
