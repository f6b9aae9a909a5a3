"""Statistics, JSON lines, processes and the command line of the benchmarks."""

import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import command, memory, rows
from benchmarks.harness.memory import TreePeak, tree_bytes
from benchmarks.harness.rows import Row, alternate, compare
from benchmarks.harness.timing import Stopwatch, Timing, tree_seconds
from benchmarks.harness.worker import Worker

BENCHMARKS = ("loader", "writing", "scoring", "end_to_end", "peers")


# Figures that the kept results lack.
UNMEASURED = {name: set[str]() for name in BENCHMARKS} | {
    "end_to_end": {"gpu_limit_share", "guard_cost"},  # need a GPU
}


def row(unit: str, ours: list[float], other: list[float], **params: Any) -> Row:
    return compare("figure", unit, ours, other, "another", **params)


# -- rows ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("unit", "sides", "ratio"),
    [
        ("images/s", ([30.0], [10.0]), 3),
        ("s", ([30.0], [10.0]), 1 / 3),
        ("bytes", ([10], [30]), 3),
        ("threads", ([0], [5]), None),
        ("threads", ([5], [0]), None),
    ],
)
def test_a_ratio_above_one_means_a_higher_rate_or_a_smaller_amount(
    unit: str, sides: tuple[list[float], list[float]], ratio: float | None
) -> None:
    found = row(unit, *sides)
    assert (found["ours"], found["other"], found["spread"]) == (sides[0][0], sides[1][0], None)
    assert found["ratio"] == (ratio and pytest.approx(ratio))


def test_a_round_that_only_one_side_measured_has_no_ratio() -> None:
    found = row("images/s", [10.0, 30.0], [10.0])
    assert (found["ours"], found["ratio"], found["params"]["rounds"]) == (20, 1, 1)


def test_sides_have_medians_and_rounds_have_ratios() -> None:
    assert row("images/s", [10, 40, 90, 40, 10], [10, 20, 30, 10, 100], keep=0.2) == {
        "figure": "figure",
        "unit": "images/s",
        "ours": 40,
        "other": 20,
        "other_name": "another",
        "ratio": 2,  # the median of the ratios 1, 2, 3, 4, 0.1
        "spread": (1, 3),
        "params": {"keep": 0.2, "rounds": 5},
    }


def test_timings_are_compared_by_the_clock_and_by_processor_time() -> None:
    ours = [Timing(10, 5), Timing(20, 4)]
    found = compare("figure", "images/s", ours, [Timing(5, 1), Timing(5, 1)], "another")
    assert (found["ours"], found["other"]) == (15, 5)
    assert (found["ratio"], found["spread"]) == (3, (2.5, 3.5))
    assert (found["cpu_ratio"], found["cpu_spread"]) == (4.5, (4.25, 4.75))
    assert "cpu_ratio" not in row("s", [1.0], [2.0])


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        ((2.0, 3.0), "reached"),
        ((1.0, 1.9), "missed"),
        ((1.9, 2.0), "undecided"),
        ((1.0, 3.0), "undecided"),
        (None, "undecided"),  # one round
    ],
)
def test_a_floor_between_the_quartiles_is_undecided(
    spread: tuple[float, float] | None, expected: str
) -> None:
    assert rows.verdict(2.0, spread) == expected


def test_a_row_with_a_floor_says_whether_it_is_reached() -> None:
    found = compare("figure", "images/s", [3.0, 3.0], [1.0, 1.0], "another", floor=2.0)
    assert (found["floor"], found["verdict"]) == (2.0, "reached")
    assert rows.table([found], []).splitlines()[-1].endswith("| 2 reached |")


def test_each_side_comes_first_in_turn() -> None:
    calls: list[str] = []

    def side(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or len(calls)  # type: ignore[func-returns-value]

    results = alternate(side("a"), side("b"), side("c"), rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert results == ([1, 6, 8], [2, 4, 9], [3, 5, 7])


def test_the_table_shows_every_row_and_a_dash_for_a_missing_ratio() -> None:
    made = [row("images/s", [3, 4], [1, 2], order="random", batch_size=7), row("s", [0], [2e6])]
    head, _, first, second = rows.table(made, ["order", "keep"]).splitlines()
    assert head.split()[1:4] == ["figure", "|", "what"]
    assert "order random" in first
    assert "batch_size" not in first
    assert "2.25 to 2.75" in first
    assert second == "| figure |  | 0 | 2,000,000 | s | - |  |  |  |  |"


# -- the command line ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_figure_of_the_kept_results_is_found_by_its_file(name: str) -> None:
    path = command.RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    figures = {json.loads(line)["figure"] for line in lines[1:]}
    assert not figures & UNMEASURED[name]
    found = command.load_figures(name)
    assert {figure for names in found for figure in names} == figures | UNMEASURED[name]
    some = min(figures | UNMEASURED[name])
    assert [some in names for names in command.load_figures(name, [some])] == [True]


@pytest.mark.parametrize("name", ["loader", "writing", "scoring", "end_to_end", "peers"])
def test_every_form_of_a_benchmark_makes_at_least_five_rounds(name: str) -> None:
    module: Any = import_module(f"benchmarks.{name}.bench")
    rounds = {"epochs", "processes", "writes", "copies", "rounds", "short_rounds", "warm", "cold"}
    for scale in (*module.SCALES, *module.QUICK):
        made = {field: number for field, number in vars(scale).items() if field in rounds}
        assert made
        assert all(number >= 5 for number in made.values() if number), made


def test_an_unknown_figure_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match=r"--only: no measurement speed\. There are .*leaked_threads"
    ):
        command.load_figures("loader", ["speed"])


@pytest.mark.parametrize(
    ("options", "kept"), [({"quick": True}, False), ({"only": ("histogram",)}, False), ({}, True)]
)
def test_only_a_full_run_of_all_figures_replaces_the_results(
    options: dict[str, Any], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_: iter([row("s", [1.0], [2.0])]))
    command.run("scoring", command.Config(**options, data=tmp_path / "data"), tmp_path)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == (["scoring.jsonl"] if kept else [])


def test_rows_go_to_stdout_and_to_a_file_that_names_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [row("images/s", [812.12345678], [590.0], keep=0.2), row("s", [1.0], [3.0])]
    monkeypatch.setattr(command, "measure", lambda *_: iter(made))
    out = tmp_path / "deep" / "rows.jsonl"
    command.run("scoring", command.Config(quick=True, data=tmp_path, out=out))
    head, *lines = out.read_text().splitlines()
    assert json.loads(head)["environment"]["cores"] >= 1
    line = json.loads(lines[0])
    assert list(line) == [
        "bench", "figure", "unit", "ours", "other", "other_name", "ratio", "spread", "params",
    ]  # fmt: skip
    assert (line["bench"], line["ours"]) == ("scoring", 812.123)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == lines
    assert "figure" in printed.err


def test_only_rows_of_wanted_figures_are_kept() -> None:
    made = [row("s", [1.0], [2.0])]
    figures: Any = {("figure", "other"): lambda _: made}
    bench = SimpleNamespace()
    assert list(command.measure(figures, [bench, bench], ["figure"])) == made * 2
    assert list(command.measure(figures, [bench], ["other"])) == []


# -- processes -------------------------------------------------------------------------------------
def test_a_worker_keeps_its_object_in_its_own_process() -> None:
    with Worker(list, [1, 2]) as worker:
        worker.call("append", 3)
        assert worker.call("__len__") == 3


def test_output_of_a_worker_is_shown_only_when_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Worker(__import__, "os") as worker:
        assert worker.call("getpid") == worker.session != os.getpid()
        worker.call("system", "echo noise")
        assert capfd.readouterr() == ("", "")
        with pytest.raises(FileNotFoundError) as failed:
            worker.call("rmdir", "/not/there")
        assert failed.value.__notes__ == ["A worker failed in 'rmdir'; its output is above."]
        assert "noise" in capfd.readouterr().err
        with pytest.raises(BrokenProcessPool):
            worker.call("_exit", 3)


def test_a_worker_that_hangs_is_an_error_and_its_children_end_with_it() -> None:
    with Worker(__import__, "multiprocessing") as worker:
        assert worker.call("get_start_method") == multiprocessing.get_start_method()
    with Worker(__import__, "subprocess").wait() as worker:
        worker.patience = 0.1
        with pytest.raises(TimeoutError):
            worker.call("run", ["sleep", "60"])
    deadline = time.monotonic() + 10
    while tree_bytes(worker.session) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tree_bytes(worker.session) == 0


# -- processor time --------------------------------------------------------------------------------
BURN = """if True:
    import sys, time
    while time.process_time() < 0.2:
        pass
    print(flush=True)
    sys.stdin.read()
"""


def start_burning() -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", BURN], stdin=pipe, stdout=pipe)


def test_time_of_threads_and_children_counts_once() -> None:
    def burn() -> None:
        start = time.thread_time()
        while time.thread_time() < start + 0.1:
            pass

    with Stopwatch() as idle:
        time.sleep(0.1)
    assert idle.timing.cpu < 0.05 < 0.1 <= idle.timing.wall
    thread = threading.Thread(target=burn)
    with Stopwatch() as watch:
        thread.start()
        thread.join()
    assert 0.1 <= watch.timing.cpu < 0.2
    with start_burning() as child:
        with Stopwatch() as alive:
            assert child.stdout
            child.stdout.read(1)
        assert 0 < alive.timing.cpu < 0.3  # of its 0.2 s, the part after the start
        with Stopwatch() as ended:
            child.communicate()
        assert ended.timing.cpu < 0.15  # not all of the child's time again


def test_time_of_orphans_and_of_children_that_nobody_waited_for_counts() -> None:
    orphan = f"import os\nif os.fork(): os._exit(0)\nexec({BURN!r})"
    with Worker(__import__, "subprocess").wait() as worker:
        before = tree_seconds(worker.session)
        worker.call("getoutput", f"{sys.executable} -c {shlex.quote(orphan)} < /dev/null")
        assert tree_seconds(worker.session) - before >= 0.2
    child = start_burning()
    with Stopwatch() as watch:
        assert child.stdin
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert watch.timing.cpu > 0.1
    child.wait()


# -- bytes and memory ------------------------------------------------------------------------------
def test_bytes_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    before = memory.read_so_far()
    path.read_bytes()
    assert 1 << 20 <= memory.read_so_far() - before < 1.1 * (1 << 20)


def sum_of_ones(size: int) -> int:
    return int(np.ones(size, dtype=np.uint8).sum())


def test_freed_memory_counts_towards_the_peak() -> None:
    size = 1 << 26
    # In a new process: a kernel that reclaims idle pages may take as much from this one meanwhile.
    with Worker(import_module, "benchmarks.harness.memory") as worker:
        total, growth = worker.call("peak_growth", partial(sum_of_ones, size))
    assert total == size
    assert 0.98 * size < growth < 1.5 * size  # the kernel's counters lag by some pages


def test_memory_of_all_processes_counts_and_shared_pages_count_once() -> None:
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
        with TreePeak(worker.session) as peak:
            worker.call("run", [sys.executable, "-c", fork], check=True)
        assert 2 * size < peak.growth < 2.5 * size
        with TreePeak(worker.session) as peak:
            worker.call("getoutput", "true")
        assert peak.growth < size


def test_a_failed_sample_is_an_error_unless_the_measured_code_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(error: Exception | None) -> None:
        samples = iter([0])  # of the start; each later sample fails
        monkeypatch.setattr(memory, "tree_bytes", lambda _: next(samples))
        with TreePeak(1):
            time.sleep(0.2)
            if error:
                raise error

    with pytest.raises(StopIteration):
        measured(None)
    with pytest.raises(KeyError, match="measured"):
        measured(KeyError("measured"))
