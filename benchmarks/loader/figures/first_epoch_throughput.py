"""Images per second of a first epoch: with indexes of the JPEGs, against `jpeg_index=False`.

The loader makes the indexes in this epoch, or `index_jpegs` has made them ahead.
"""

from dataclasses import replace
from functools import partial

from benchmarks.harness.dataset import Images, prepare
from benchmarks.harness.rows import Row, alternate, compare
from benchmarks.harness.worker import workers
from benchmarks.loader.bench import Bench, params
from benchmarks.loader.sides import Ours, Setting

FLOORS = {"made in this epoch": 0.5, "made ahead": 0.9}


def measure(bench: Bench) -> list[Row]:
    images = Images(num_samples=bench.scale.jpeg400, long_side=400)
    setting = Setting(beton=prepare(images, bench.data))
    plain = replace(setting, jpeg_index=False)
    with workers(Ours, Ours, Ours) as sides:
        calls = [
            partial(side.call, "first_epoch", *arguments)
            for side, arguments in zip(
                sides, ((setting, False), (setting, True), (plain, True)), strict=True
            )
        ]
        for call in calls:
            call()  # compiles
        *indexed, without = alternate(*calls, rounds=bench.scale.epochs)
    if len({epoch["labels"] for side in (*indexed, without) for epoch in side}) > 1:
        raise RuntimeError("the sides loaded different labels")
    rates = [[epoch["seconds"].rate(epoch["images"]) for epoch in side] for side in indexed]
    other = [epoch["seconds"].rate(epoch["images"]) for epoch in without]
    about = params(setting, long_side=images.long_side, resolution=setting.resolution)
    name = "PrunedLoader, jpeg_index=False"
    return [
        compare(
            "first_epoch_throughput", "images/s", side, other, name, floor=floor, how=how, **about
        )
        for side, (how, floor) in zip(rates, FLOORS.items(), strict=True)
    ]
