"""Images per second from a beton compacted to raw images, against stock ffcv on the JPEGs.

Both loaders read the compacted file: what the stock loader gains is due to the file alone.
"""

from functools import partial

import numpy as np

from benchmarks.harness.dataset import prepare
from benchmarks.harness.rows import Row, compare
from benchmarks.loader.bench import alternate_epochs
from benchmarks.loader.sides import Ours, Setting, Stock
from benchmarks.writing.bench import Bench
from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.beton import format

RAW = next(mode for mode, name in format.IMAGE_MODES.items() if name == "raw")

FLOOR = 13.0  # of our loader


def measure(bench: Bench) -> list[Row]:
    source = prepare(bench.images(bench.scale.raw, 400), bench.data)
    stock = Setting(beton=source)
    compacted = bench.outputs / "raw.beton"
    bench.sides[0].call("compact", source, stock.retained(), compacted, images="raw")
    if np.any(BetonIndex.open(compacted).column("image")["mode"] != RAW):
        raise RuntimeError(f"{compacted} has images that are not raw")
    raw = Setting(beton=compacted, keep=1.0)
    sides = ((Ours, raw), (Stock, raw), (Stock, stock))
    (ours, its_raw, its), loaded = alternate_epochs(sides, bench.scale.epochs)
    cache = loaded.pop("ours_cache")
    params = {
        "samples": BetonIndex.open(source).num_samples,
        "keep": stock.keep,
        "order": stock.order,
        "batch_size": stock.batch_size,
        "ours_file_bytes": compacted.stat().st_size,
        **loaded,
    }
    row = partial(compare, "compact_raw_throughput", "images/s", other_name=Stock.name)
    return [
        row(ours, its, **params, ours_cache=cache, how=Ours.name, floor=FLOOR),
        row(its_raw, its, **params, how="stock Loader"),
    ]
