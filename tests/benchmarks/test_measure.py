"""Statistics, JSON lines and processes of the benchmarks."""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import measure, tree_memory
from benchmarks.harness.measure import Row, Worker, alternate, compare
from benchmarks.harness.tree_memory import TreePeak, tree_bytes


def row(unit: str, ours: list[float], other: list[float], **params: Any) -> Row:
    return compare("bench", "figure", unit, ours, other, "another", **params)


def test_more_of_a_rate_is_better_and_less_of_anything_else() -> None:
    assert row("images/s", [30.0], [10.0]).ratio == 3
    assert row("s", [30.0], [10.0]).ratio == pytest.approx(1 / 3)
    assert row("bytes", [10], [30]).ratio == 3


def test_sides_have_medians_and_pairs_have_ratios() -> None:
    found = row("images/s", [10, 40, 90, 40, 10], [10, 20, 30, 10, 100])
    assert (found.ours, found.other) == (40, 20)
    assert found.ratio == 2  # of the ratios 1, 2, 3, 4, 0.1, not of the medians
    assert found.spread == (1, 3)
    assert found.params == {"rounds": 5}


@pytest.mark.parametrize("sides", [([0], [5]), ([5], [0]), ([], [5]), ([5], [])])
def test_without_both_sides_there_is_no_ratio(sides: tuple[list[float], list[float]]) -> None:
    found = row("threads", *sides)
    assert (found.ratio, found.spread) == (None, None)
    assert found.ours == (sides[0] or [None])[0]
    assert found.other == (sides[1] or [None])[0]


def test_a_line_has_the_stated_keys() -> None:
    line = json.loads(row("images/s", [812.12345678], [590.0], keep=0.2).line())
    assert list(line) == [
        "bench", "figure", "unit", "ours", "other", "other_name", "ratio", "spread", "params",
    ]  # fmt: skip
    assert line["ours"] == 812.123
    assert line["spread"] is None
    assert line["params"] == {"keep": 0.2, "rounds": 1}


def test_sides_alternate_and_each_comes_first_in_turn() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or len(calls)  # type: ignore[func-returns-value]

    results = alternate(side("a"), side("b"), rounds=3)
    assert "".join(calls) == "abbaab"
    assert results == ([1, 4, 5], [2, 3, 6])
    calls.clear()
    results = alternate(side("a"), side("b"), side("c"), rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert results == ([1, 6, 8], [2, 4, 9], [3, 5, 7])


def test_the_file_is_headed_by_the_environment(tmp_path: Path) -> None:
    rows = [row("s", [1.0], [2.0]), row("s", [1.0], [3.0])]
    measure.write_rows(tmp_path / "deep" / "rows.jsonl", "bench", rows)
    head, *lines = (tmp_path / "deep" / "rows.jsonl").read_text().splitlines()
    assert json.loads(head)["environment"]["cores"] >= 1
    assert lines == [each.line() for each in rows]


def test_the_table_shows_every_row_and_a_dash_for_nothing() -> None:
    rows = [row("images/s", [3, 4], [1, 2], order="random", batch_size=7), row("s", [], [2e6])]
    head, first, second = measure.table(rows, ["order", "keep"]).splitlines()
    assert head.split()[:2] == ["figure", "what"]
    assert "order random" in first
    assert "batch_size" not in first
    assert "2.25 to 2.75" in first
    assert second.split() == ["figure", "-", "2,000,000", "s", "-"]


# -- processes -------------------------------------------------------------------------------------
def test_a_worker_keeps_its_object_in_a_process_of_its_own() -> None:
    with Worker(list, [1, 2]) as worker:
        worker.call("append", 3)
        assert worker.call("__len__") == 3
    with Worker(__import__, "os") as worker:
        assert worker.call("getpid") != os.getpid()


def test_what_a_worker_prints_is_shown_only_when_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Worker(__import__, "os") as worker:
        worker.call("system", "echo noise")
        assert capfd.readouterr() == ("", "")
        with pytest.raises(RuntimeError, match="a worker failed in 'rmdir': FileNotFoundError"):
            worker.call("rmdir", "/not/there")
    assert "noise" in capfd.readouterr().err


def test_a_worker_that_ends_is_an_error() -> None:
    with Worker(os._exit, 3) as worker, pytest.raises(RuntimeError, match="the process ended"):
        worker.wait()


def test_a_worker_that_hangs_is_an_error() -> None:
    with Worker(__import__, "time").wait() as worker:
        worker.patience = 0.1
        with pytest.raises(RuntimeError, match="no answer to 'sleep'"):
            worker.call("sleep", 60)


def test_a_worker_starts_processes_as_a_program_of_its_own_does() -> None:
    with Worker(__import__, "multiprocessing") as worker:
        assert worker.call("get_start_method") == multiprocessing.get_start_method()


def test_what_a_worker_started_ends_with_it() -> None:
    worker = Worker(__import__, "subprocess").wait()
    worker.patience = 0.1
    with worker, pytest.raises(RuntimeError, match="no answer to 'run'"):
        worker.call("run", ["sleep", "60"])
    deadline = time.monotonic() + 10
    while tree_bytes(worker.session) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tree_bytes(worker.session) == 0


# -- the process's own books -----------------------------------------------------------------------
def test_bytes_that_were_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    before = measure.read_so_far()
    path.read_bytes()
    assert 1 << 20 <= measure.read_so_far() - before < 1.1 * (1 << 20)


def test_memory_that_was_given_back_is_counted() -> None:
    size = 1 << 26
    total, growth = measure.peak_growth(lambda: int(np.ones(size, dtype=np.uint8).sum()))
    assert total == size
    assert 0.98 * size < growth < 1.5 * size  # the kernel's counters lag by some pages


def test_memory_of_a_whole_tree_is_counted_and_pages_that_are_shared_count_once() -> None:
    size = 1 << 26
    fork = f"""if True:
        import os, time
        shared = b"x" * {size}
        child = os.fork()
        if not child:
            own = b"y" * {size}
        time.sleep(0.4)
        if child:
            os.wait()
    """
    with Worker(__import__, "subprocess").wait() as worker:
        with TreePeak(worker.session) as memory:
            worker.call("run", [sys.executable, "-c", fork], check=True)
        assert 2 * size < memory.growth < 2.5 * size
        with TreePeak(worker.session) as memory:
            worker.call("getoutput", "true")
        assert memory.growth < size


def no_look_in_the_background(session: int) -> int:
    if threading.current_thread() is not threading.main_thread():
        raise PermissionError(f"no look at {session}")
    return 0


def test_memory_that_cannot_be_sampled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_memory, "tree_bytes", no_look_in_the_background)
    with pytest.raises(PermissionError, match="no look"), TreePeak(1):
        time.sleep(0.2)


def test_what_fails_while_memory_is_sampled_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured() -> None:
        time.sleep(0.2)
        raise RuntimeError("what was measured failed")

    monkeypatch.setattr(tree_memory, "tree_bytes", no_look_in_the_background)
    with pytest.raises(RuntimeError, match="what was measured failed"), TreePeak(1):
        measured()
