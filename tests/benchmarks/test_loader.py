"""The loader benchmark runs, on next to nothing, and prints what it should."""

import json
from pathlib import Path

import pytest

from benchmarks import loader
from benchmarks.loader import figures
from benchmarks.loader.figures import Scale


def test_every_figure_is_measured() -> None:
    assert set(figures.NAMES) == {
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "QUICK", Scale(jpeg500=600))
    names, out = ("leaked_threads", "read_amplification"), tmp_path / "rows.jsonl"
    loader.main(loader.Config(quick=True, only=names, data=tmp_path, out=out))
    printed = capfd.readouterr()
    head, *kept = out.read_text().splitlines()
    assert "environment" in json.loads(head)
    assert kept == printed.out.splitlines()
    rows = {row["figure"]: row for row in map(json.loads, kept)}
    assert set(rows) == set(names)
    for name in names:
        assert name in printed.err

    threads, read = rows["leaked_threads"], rows["read_amplification"]
    assert (threads["bench"], threads["unit"]) == ("loader", "threads")
    assert threads["ours"] == 0
    assert threads["other"] > 0
    assert threads["ratio"] is None
    assert read["other"] > 4  # whole pages, at keep 0.2
    assert read["ours"] < 1.1
    assert read["ratio"] == pytest.approx(read["other"] / read["ours"], rel=1e-4)


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
