"""Images per second: JPEG files that keep their bytes, with and without a check by decoding."""

from dataclasses import replace
from functools import partial

from benchmarks.harness.rows import Row, alternate
from benchmarks.harness.timing import Timing
from benchmarks.writing.bench import Bench, row
from benchmarks.writing.sides import Job, check_bytes


def measure(bench: Bench) -> list[Row]:
    number = bench.scale.passthrough
    files = bench.files_in_memory(number, 400)
    job = Job(files=files, num_samples=number)
    ways = {"bytes kept": job, "decode_check": replace(job, decode_check=True)}
    (ours, stock), (out, its_out) = bench.sides, bench.outs

    def write_ours() -> list[Timing]:
        rates = []
        for way in ways.values():
            ours.call("list_files", way)
            rates.append(ours.call("write", out))
            check_bytes(out, files)
        return rates

    stock.call("list_files", job)
    # Both of our ways run in every round, and share the other side's measurements.
    mine, its = alternate(
        write_ours, partial(stock.call, "write", its_out), rounds=bench.scale.writes
    )
    params = bench.check_written(job, 400)
    rates = zip(*mine, strict=True)
    return [
        row("write_passthrough", "images/s", each, its, **params, how=how)
        for how, each in zip(ways, rates, strict=True)
    ]
