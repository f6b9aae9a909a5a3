"""The loader benchmark measures both sides, on very little data."""

from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest

from benchmarks.harness.command import load_figures, measure
from benchmarks.loader.bench import Bench, Scale
from benchmarks.loader.figures import leaked_threads


def test_stock_ffcv_reads_whole_pages_and_leaks_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("leaked_threads", "read_amplification")
    with ExitStack() as stack:
        bench = Bench(Scale(jpeg500=300), tmp_path, stack)
        # One pair of processes for both figures, because each takes seconds to start.
        monkeypatch.setattr(leaked_threads, "both", lambda: nullcontext(bench.readers))
        threads, read = measure(load_figures("loader", names), [bench], names)
    assert (threads["figure"], threads["unit"]) == ("leaked_threads", "threads")
    assert threads["ours"] == 0 < threads["other"]
    assert read["other"] > 4  # whole pages, at keep 0.2
    assert read["ours"] < 1.1
    assert read["ratio"] == pytest.approx(read["other"] / read["ours"])
