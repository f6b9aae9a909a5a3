"""Throughput: the time waited for the loader, and the progress line."""

from collections.abc import Iterator

import pytest
import torch

from train.components import throughput as module
from train.components.throughput import Throughput

CPU = torch.device("cpu")


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


def loading(clock: Clock, count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        clock.now += seconds
        yield number


def test_waiting_for_the_loader_is_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, throughput = Clock(monkeypatch), Throughput(CPU, quiet=True)
    taken = []
    for batch in throughput.batches(loading(clock, 5, seconds=1.0), 4, 10):
        clock.now += 3.0
        taken.append(batch)
    assert taken == [0, 1, 2, 3]  # no more than the steps that are left
    assert throughput.stalled == 4.0
    assert list(throughput.batches(loading(clock, 2, seconds=1.0), 4, 10)) == [0, 1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_opening_the_loader_is_waiting_for_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class SlowToOpen:
        """A loader that takes six seconds to open."""

        def __iter__(self) -> Iterator[int]:
            clock.now += 6.0
            return loading(clock, 2, seconds=1.0)

    class Event:
        """Event of an idle GPU, which passes as soon as it is recorded."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: "Event") -> float:
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    throughput = Throughput(torch.device(device), quiet=True)
    for _ in throughput.batches(SlowToOpen(), 2, 10):
        clock.now += 3.0
    assert throughput.stalled == 8.0


def test_the_progress_line_has_rate_stalls_and_time_to_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr("dp4tl_ffcv.progress.time.monotonic", lambda: clock.now)
    for quiet in (True, False):
        throughput = Throughput(CPU, description="pretrain x", steps_after=96, quiet=quiet)
        for _ in throughput.batches(loading(clock, 4, seconds=5.0), 4, 64):
            clock.now += 15.0
        lines = capsys.readouterr().err.splitlines()
        assert bool(lines) != quiet
    assert lines[0] == (
        "pretrain x: 64/256 images, 3.2 images/s, 60 s left, 25.0% waiting for the loader, "
        "0:33:00 to the end of the run"
    )
