"""Memory for the bytes that are read ahead."""

from benchmarks.harness.rows import Row
from benchmarks.loader.bench import ORDERS, Bench, params, single
from benchmarks.loader.sides import Setting


def measure(bench: Bench) -> list[Row]:
    rows = []
    for order in ORDERS:
        setting = Setting(beton=bench.big, keep=0.5, batch_size=1024, order=order, from_disk=True)
        (mine,), (its,) = bench.plans(setting, rounds=1)
        about = params(setting, how="planned")
        rows.append(single("pool_bytes", "bytes", (mine[1], its[1]), **about))
    setting = Setting(beton=bench.paged, keep=0.5, batch_size=64, from_disk=True, resolution=None)
    grown = bench.first_epochs(setting, "epoch_growth")
    about = params(setting, how="growth of resident memory in an epoch")
    return [*rows, single("pool_bytes", "bytes", grown, **about)]
