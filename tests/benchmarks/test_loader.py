"""The loader benchmark measures both sides, on very little data."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.harness.command import load_figures, measure
from benchmarks.loader.bench import Bench, Scale


def test_stock_ffcv_reads_whole_pages_and_leaks_threads(tmp_path: Path) -> None:
    names = ("leaked_threads", "read_amplification")
    with ExitStack() as processes:
        bench = Bench(Scale(jpeg500=600), tmp_path, processes)
        threads, read = measure(load_figures("loader", names), [bench], names)
    assert (threads.figure, threads.unit) == ("leaked_threads", "threads")
    assert threads.ours == 0
    assert threads.other is not None
    assert threads.other > 0
    assert threads.ratio is None
    assert read.ours is not None
    assert read.other is not None
    assert read.other > 4  # whole pages, at keep 0.2
    assert read.ours < 1.1
    assert read.ratio == pytest.approx(read.other / read.ours)
