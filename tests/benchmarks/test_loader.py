"""The loader benchmark measures both sides, on very little data."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.harness.command import load_figures, measure
from benchmarks.loader.bench import Bench, Scale
from benchmarks.loader.figures import read_amplification_cold as cold


def test_stock_ffcv_leaks_threads(tmp_path: Path) -> None:
    names = ("leaked_threads",)
    with ExitStack() as stack:
        bench = Bench(Scale(jpeg500=300, processes=1), tmp_path, stack)
        (threads,) = measure(load_figures("loader", names), [bench], names)
    assert (threads["figure"], threads["unit"]) == ("leaked_threads", "threads")
    assert threads["ours"] == 0 < threads["other"]


def test_stock_ffcv_reads_whole_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("read_amplification_cold",)
    monkeypatch.setattr(cold, "SHAPES", (cold.Shape(32, is_square=False),))
    monkeypatch.setattr(cold, "KEEP", (0.2,))
    monkeypatch.setattr(cold, "RAW_BYTES", 10 << 20)
    try:
        with ExitStack() as stack:
            bench = Bench(Scale(jpeg500=300), tmp_path, stack)
            photographs, small = measure(load_figures("loader", names), [bench], names)
    except RuntimeError as error:
        if "stays in memory" in str(error):
            pytest.skip(str(error))
        raise
    for row, how, most in ((photographs, "JPEG, 500 px", 1.05), (small, "raw, 32 px", 1.3)):
        assert row["params"]["how"].startswith(how)
        assert 1 <= row["params"]["least"] <= row["ours"] < most
        assert row["params"]["warm"] < 0.1  # the process may also read its libraries
        assert row["params"]["tables"] > 0
        assert row["other"] > 4  # whole pages, at keep 0.2
        assert row["ratio"] == pytest.approx(row["other"] / row["ours"])
