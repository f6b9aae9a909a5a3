"""What a run tells: stalls, rate and time left; the log; the curves of TensorBoard."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dp4tl_ffcv.utils import RunFolder
from train.components import progress
from train.components.progress import Journal, Meter

CPU = torch.device("cpu")


class Clock:
    """Stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def loading(clock: Clock, count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        clock.now += seconds
        yield number


def test_waiting_for_the_loader_is_told_from_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, meter = Clock(monkeypatch), Meter(CPU, quiet=True)
    taken = []
    for batch in meter.batches(loading(clock, 5, seconds=1.0), 4, 10):
        clock.now += 3.0
        taken.append(batch)
    assert taken == [0, 1, 2, 3]  # no more than the steps that are left
    assert meter.stalled == 4.0
    assert meter.seconds == 16.0
    assert meter.stall_share == 0.25


class SlowToOpen:
    """A loader that starts its threads and fills its first slots before it has an iterator."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[int]:
        self.clock.now += 6.0
        return loading(self.clock, 2, seconds=1.0)


def test_opening_the_loader_is_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, meter = Clock(monkeypatch), Meter(CPU, quiet=True)
    for _ in meter.batches(SlowToOpen(clock), 2, 10):
        clock.now += 3.0
    assert meter.stalled == 8.0
    assert meter.seconds == 14.0


def test_a_gpu_waits_from_before_the_loader_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Event:
        """Of a GPU without work of its own: it passes as soon as it is recorded."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: "Event") -> float:
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    meter = Meter(torch.device("cuda"), quiet=True)
    for _ in meter.batches(SlowToOpen(clock), 2, 10):
        clock.now += 3.0
    assert meter.stalled == 8.0


def test_a_short_epoch_ends_with_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, meter = Clock(monkeypatch), Meter(CPU, quiet=True)
    assert meter.stall_share == 0
    assert list(meter.batches(loading(clock, 2, seconds=1.0), 4, 10)) == [0, 1]


def test_a_line_says_rate_stall_and_the_time_to_the_runs_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr("dp4tl_ffcv.progress.time.monotonic", lambda: clock.now)
    meter = Meter(CPU, description="pretrain x", steps_after=96)
    for _ in meter.batches(loading(clock, 4, seconds=5.0), 4, 64):
        clock.now += 15.0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "pretrain x: 64/256 images, 3.2 images/s, 60 s left, 25.0% waiting for the loader, "
        "0:33:00 to the end of the run"
    )


def test_other_processes_are_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr("dp4tl_ffcv.progress.time.monotonic", lambda: clock.now)
    list(Meter(CPU, quiet=True).batches(loading(clock, 4, seconds=50.0), 4, 64))
    assert capsys.readouterr().err == ""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", {})
    folder.start()
    return folder


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a stand-in for TensorBoard is told."""
    told: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append(("open", Path(folder).name, purge_step))

        def add_scalar(self, *point: Any) -> None:
            told.append(point)

        def close(self) -> None:
            told.append(("close",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return told


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()][1:]


def test_a_journal_writes_lines_and_losses_in_order(run: RunFolder) -> None:
    journal = Journal(run)
    loss = torch.tensor(2.5)
    journal.loss(2, loss)
    loss.fill_(1.5)  # a graph's output is overwritten by its next replay
    journal.loss(4, loss)
    journal.flush()
    journal.write("epoch", 4, loss=2.0)
    journal.close()
    assert rows(run) == [
        {"event": "step", "step": 2, "loss": 2.5},
        {"event": "step", "step": 4, "loss": 1.5},
        {"event": "epoch", "step": 4, "loss": 2.0},
    ]


def test_tensorboard_gets_the_numbers_where_it_is_installed(
    run: RunFolder, curves: list[tuple[Any, ...]]
) -> None:
    journal = Journal(run, first_step=3)
    journal.write("validation", 6, val_accuracy=0.5, val_accuracy_per_class={"1": 0.5}, robust=None)
    journal.close()
    assert curves == [("open", "tensorboard", 3), ("validation/val_accuracy", 0.5, 6), ("close",)]
    assert rows(run)[0]["val_accuracy_per_class"] == {"1": 0.5}


def test_without_tensorboard_there_is_the_log(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    journal = Journal(run)
    journal.write("epoch", 4, loss=2.0)
    journal.close()
    assert len(rows(run)) == 1
    assert not (run.path / "tensorboard").exists()


def test_other_processes_write_nothing(run: RunFolder, curves: list[tuple[Any, ...]]) -> None:
    journal = Journal(run, active=False)
    journal.loss(2, torch.tensor(2.5))
    journal.write("epoch", 4, loss=2.0)
    journal.close()
    assert rows(run) == curves == []
