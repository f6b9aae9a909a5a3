"""Images per second: JPEGs of 500 pixels, random resized crops of 224."""

from benchmarks.harness.dataset import Images
from benchmarks.harness.rows import Row
from benchmarks.loader.bench import Bench

FLOOR = 2.4


def measure(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.jpeg500, long_side=500)
    return bench.throughput("jpeg_rrc_throughput_500", images, FLOOR, resolution=224)
