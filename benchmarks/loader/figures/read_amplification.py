"""Bytes read per byte of the retained samples, in the first epoch."""

from benchmarks.harness.rows import Row
from benchmarks.loader.bench import Bench, params, single
from benchmarks.loader.sides import Setting
from dp4tl_ffcv import BetonIndex


def measure(bench: Bench) -> list[Row]:
    setting = Setting(beton=bench.paged, batch_size=128, from_disk=True, resolution=None)
    sizes = BetonIndex.open(setting.beton).sample_bytes()
    retained = int(sizes[setting.retained()].sum())
    read = [epoch["read"] / retained for epoch in bench.first_epochs(setting, "epoch")]
    about = params(setting, retained_bytes=retained, file_bytes=int(sizes.sum()))
    return [single("read_amplification", "bytes read / bytes retained", read, **about)]
