"""Images per second: JPEG files shrunk from 500 to 400 pixels."""

from functools import partial

from benchmarks.harness.rows import Row, alternate
from benchmarks.writing.bench import Bench, row
from benchmarks.writing.sides import Job


def measure(bench: Bench) -> list[Row]:
    number = bench.scale.resize
    job = Job(files=bench.files_in_memory(number, 500), num_samples=number, max_resolution=400)
    for side in bench.sides:
        side.call("list_files", job)
    ours, stock = (
        partial(side.call, "write", out) for side, out in zip(bench.sides, bench.outs, strict=True)
    )
    rates = alternate(ours, stock, rounds=bench.scale.writes)
    params = bench.check_written(job, 400)
    return [row("write_resize", "images/s", *rates, **params, how="500 to 400 px")]
