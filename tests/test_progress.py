"""Progress: a bar on a terminal, lines with rate and time left elsewhere."""

import io
from functools import partial

import pytest

from dp4tl_ffcv import progress
from dp4tl_ffcv.utils import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by six seconds per call."""
    times = iter(range(0, 6000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(times)))


def test_a_terminal_shows_a_bar_with_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    tracked = track(range(5), total=50, description="write a", unit="images", scale=10)
    assert list(tracked) == [*range(5)]
    shown = terminal.getvalue()
    assert "write a" in shown
    assert "/50" in shown
    assert "images/s" in shown


@pytest.mark.usefixtures("clock")
def test_a_log_gets_lines_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [[0] * 3, [0] * 7, [0] * 5, [0] * 5, [0] * 10]
    tracked = track(batches, total=30, description="write a", unit="images", scale=len)
    assert list(tracked) == batches
    assert capsys.readouterr().err.splitlines() == [
        "write a: 10/30 images, 0.8 images/s, 24 s left",
        "write a: 20/30 images, 0.8 images/s, 12 s left",
    ]


@pytest.mark.usefixtures("clock")
def test_a_note_follows_in_the_line_and_on_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noted(count: int) -> None:
        list(track(range(count), total=count, description="x", note=lambda: "2% waiting"))

    noted(1)  # short work prints nothing
    noted(3)
    assert capsys.readouterr().err.splitlines() == ["x: 2/3 it, 0.2 it/s, 6 s left, 2% waiting"]
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0))
    noted(3)
    assert "2% waiting" in terminal.getvalue()
