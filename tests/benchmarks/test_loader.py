"""The loader benchmark runs, on next to nothing, and prints what it should."""

import json
from pathlib import Path

import pytest

from benchmarks import loader, loader_figures
from benchmarks.loader_figures import Scale, measure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


def test_every_figure_is_measured() -> None:
    assert set(loader_figures.NAMES) == {
        "read_amplification",
        "pool_bytes",
        "construct_seconds",
        "construct_bytes",
        "jpeg_rrc_throughput",
        "raw_rrc_throughput",
        "second_loader_seconds",
        "leaked_threads",
        "planning_seconds",
    }


def test_it_prints_lines_on_stdout_and_keeps_them(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    loader.main(loader.Config(quick=True, only=("leaked_threads",), data=data, out=out))
    printed = capfd.readouterr()
    (line,) = printed.out.splitlines()
    row = json.loads(line)
    assert (row["bench"], row["figure"], row["unit"]) == ("loader", "leaked_threads", "threads")
    assert row["ours"] == 0
    assert row["other"] > 0
    assert row["ratio"] is None
    head, kept = out.read_text().splitlines()
    assert kept == line
    assert "environment" in json.loads(head)
    assert "leaked_threads" in printed.err


def test_only_a_full_run_of_all_figures_replaces_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(loader, "RESULTS", results)
    monkeypatch.setattr(loader, "measure", lambda *_: iter(()))
    loader.main(loader.Config(quick=True))
    loader.main(loader.Config(only=("pool_bytes",)))
    assert not results.exists()
    loader.main(loader.Config())
    assert results.exists()


def test_stock_reads_whole_pages_and_we_read_extents(data: Path) -> None:
    (row,) = measure(Scale(jpeg500=600), data, ["read_amplification"])
    assert row.other is not None
    assert row.other > 4  # keep is 0.2
    assert row.ours is not None
    assert row.ours < 1.1
