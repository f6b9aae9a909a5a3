"""Bytes per second: `compact` byte for byte, against `cp` of a file of the same size."""

import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.dataset import prepare
from benchmarks.harness.rows import Row, alternate, compare
from benchmarks.loader.sides import Setting
from benchmarks.writing.bench import Bench
from benchmarks.writing.sides import cp
from dp4tl_ffcv import BetonIndex

MEMORY = Path("/dev/shm")  # files here have no disk to be flushed to


def measure(bench: Bench) -> list[Row]:
    source = prepare(bench.images(bench.scale.compact, 500), bench.data)
    kept = Setting(beton=source).retained()
    bench.sides[0].call("compact", source, kept, bench.outs[0])  # imports; fills the page cache
    size = bench.outs[0].stat().st_size
    like = bench.outputs / "as_many_bytes"
    with source.open("rb") as stream:
        like.write_bytes(stream.read(size))
    params: dict[str, Any] = {
        "samples": BetonIndex.open(source).num_samples,
        "keep": Setting(beton=source).keep,
        "layout": "shuffled",
        "file_bytes": size,
    }

    def against_cp(folder: Path, flush: bool, flushed: str) -> Row:
        ours = partial(bench.sides[0].call, "compact", source, kept, folder / "ours.beton")
        other = partial(cp, like, folder / "copy", flush=flush)
        mine, its = alternate(ours, other, rounds=bench.scale.copies)
        about = {**params, "flush": flushed}
        return compare("compact_copy", "bytes/s", mine, its, "cp", **about)

    # `compact` always flushes, `cp` only when followed by `sync`.
    rows = [
        against_cp(bench.outputs, True, "both"),
        against_cp(bench.outputs, False, "compact alone"),
    ]
    if shutil.disk_usage(MEMORY).free > 3 * size:
        with TemporaryDirectory(dir=MEMORY) as folder:
            rows.append(against_cp(Path(folder), False, "neither, into memory"))
    return rows
