"""Results and report that are written while a study goes on."""

from pathlib import Path

import pytest

from tests.support.reports import rows
from train.components.study import record as module
from train.components.study.record import Record


class Clock:
    """A clock that writing a record moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.now, self.writes, self.error = 100.0, 0, error
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "write_report", self.write)
        monkeypatch.setattr(module, "rows_of", lambda _: [])
        monkeypatch.setattr(Record, "_source", lambda _: None)
        for name in ("write_results", "write_summary"):
            monkeypatch.setattr(module, name, lambda *_: None)

    def write(self, *_: object, **__: object) -> None:
        self.now, self.writes = self.now + 2.0, self.writes + 1
        if self.error:
            raise self.error


def test_records_of_an_unfinished_study_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    record = Record(tmp_path, [], [], Path("a.yaml"))
    for _ in range(1000):
        record.refresh()
        clock.now += 1.0
    assert 2 <= clock.writes <= 1000 * 0.03 / 2
    record.write()
    assert record.write().rows == []  # always at the end


def test_an_unfinished_study_goes_on_without_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, ValueError("results.jsonl is damaged"))
    record = Record(tmp_path, [], [], Path("a.yaml"))
    record.refresh()
    record.refresh()
    assert clock.writes == 1
    assert "no report: results.jsonl is damaged" in capsys.readouterr().out
    with pytest.raises(ValueError, match="damaged"):
        record.write()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_short_table_when_it_has_changed(
    terminal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock(monkeypatch)
    found = rows(seeds=2)
    monkeypatch.setattr(module, "rows_of", lambda _: found)
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("LINES", "10")
    record = Record(tmp_path, [], [], Path("a.yaml"))
    shown = []
    for _ in range(3):
        clock.now += 1000.0
        record.refresh()
        shown.append(capsys.readouterr().out)
    found.clear()
    found.extend(rows(seeds=3))
    clock.now += 1000.0
    record.refresh()
    shown.append(capsys.readouterr().out)
    assert clock.writes == 4
    assert [bool(each) for each in shown] == [terminal, False, False, terminal]
    if terminal:
        assert "upright linear probe equal epochs LM 2 +0.00 ?" in " ".join(shown[0].split())
        assert shown[0].strip().splitlines()[-1] == f"7 more: {tmp_path / 'report.html'}"
        assert len(shown[0].splitlines()) == 9
