"""Images per processor second that `index_jpegs` indexes, and the bytes of their indexes."""

from functools import partial

from benchmarks.harness.dataset import Images, prepare
from benchmarks.harness.rows import Row, compare
from benchmarks.harness.worker import workers
from benchmarks.loader.bench import Bench
from benchmarks.loader.sides import Ours

FIGURES = ("index_build", "index_bytes")
FLOOR = 1.0  # of images/s against `WANTED`
WANTED = 1000.0  # images per processor second
LARGEST_SHARE = 0.015  # of the bytes of the beton


def measure(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.jpeg400, long_side=400)
    beton = prepare(images, bench.data)
    with workers(Ours) as (side,):
        side.call("index", beton)  # compiles
        runs = [side.call("index", beton) for _ in range(bench.scale.epochs)]
    rates = [run["seconds"].rate(run["jpegs"]).cpu for run in runs]
    about = {"samples": images.num_samples, "long_side": images.long_side}
    about["indexed"] = runs[0]["indexed"]
    row = partial(compare, **about)
    wanted, size = [WANTED] * len(rates), beton.stat().st_size
    return [
        row(
            "index_build", "images/processor s", rates, wanted, f"{WANTED:,.0f} images",
            floor=FLOOR,
        ),
        row(
            "index_bytes", "bytes", [runs[0]["file_bytes"]] * 2, [size] * 2, "the beton",
            floor=1 / LARGEST_SHARE,
        ),
    ]  # fmt: skip
