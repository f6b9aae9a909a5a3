"""Names from files are printed without control characters, wherever they are printed."""

import sys
from typing import Any

import pytest

from dp4tl_ffcv.cli.output import Output
from dp4tl_ffcv.utils import one_line_errors, printable, track

EVIL = "a\x1b[31mred\nline\r\x07\x9b\u202e\udcff"
SAFE = r"a\x1b[31mred\nline\r\x07\x9b\u202e\udcff"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SAFE),
        ("naïve 猫 кот 🐈", "naïve 猫 кот 🐈"),
        ("می\u200cخواهم क्\u200dष 👩\u200d🔬", "می\u200cخواهم क्\u200dष 👩\u200d🔬"),
        ("a\u200b\u200e\u200f\u202a\u2066\ufeffb", r"a\u200b\u200e\u200f\u202a\u2066\ufeffb"),
        ("", ""),
        ("a\\b", "a\\b"),
    ],
    ids=["controls", "scripts", "joiners", "directions", "empty", "backslash"],
)
def test_only_characters_that_are_not_printable_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("is_terminal", [False, True], ids=["log", "terminal"])
def test_names_are_escaped_wherever_they_are_printed(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("dp4tl_ffcv.progress._SECONDS_BETWEEN_LINES", 0.0)
    result: dict[str, Any] = {"class_names": [EVIL], "problems": [{"name": EVIL}], "path": EVIL}
    Output().show(result)
    with pytest.raises(SystemExit), one_line_errors(program="dp4tl", debug=False):
        raise ValueError(EVIL)
    list(track(range(2), total=2, description=f"write {EVIL}"))
    said = capsys.readouterr()
    for stream in said:
        assert "red" in stream
        for each in "\x1b\x07\x9b\u202e\udcff":
            assert each not in stream.replace("\x1b[A", "")  # tqdm may move the cursor
    assert len(said.out.splitlines()) == 3
