"""Every verb calls one public function and prints its summary; recipes are verbs too."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import dp4tl_ffcv
from dp4tl_ffcv import scoring
from dp4tl_ffcv.cli import main, verbs
from dp4tl_ffcv.cli.main import run_verb
from dp4tl_ffcv.cli.prune import Prune
from dp4tl_ffcv.cli.verbs import Verb

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = {"samples": 3}


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """All public names, replaced by recorders."""
    recorder = MagicMock()
    for name in set(dp4tl_ffcv.__all__) - {"__version__"}:
        function = getattr(recorder, name)
        for each in (function, function.open, function.load):
            each.return_value.summary.return_value = SUMMARY
        monkeypatch.setattr(dp4tl_ffcv, name, function)
    recorder.score.return_value.summary.return_value = SUMMARY
    monkeypatch.setattr(scoring, "score", recorder.score)
    return recorder


@pytest.mark.parametrize("verb", Verb.__subclasses__())
def test_a_verb_calls_one_public_function(
    verb: type[Verb], public: MagicMock, capsys: pytest.CaptureFixture[str]
) -> None:
    required = [each.name for each in fields(verb) if each.default is each.default_factory]
    given = {"surrogate": "resnet18"} if verb is Prune else {}  # else it trains one first
    run_verb(verb(**{name: MagicMock() for name in required}, **given))
    calls = [name for name, _, _ in public.mock_calls if "()" not in name]
    assert len(set(calls) - {"BetonIndex.open"}) <= 1  # a verb may open the beton
    assert len(calls) == len(set(calls)) > 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "function"),
    [
        (Prune, dp4tl_ffcv.prune),
        (verbs.Inspect, dp4tl_ffcv.BetonIndex.summary),
        (verbs.Verify, dp4tl_ffcv.verify),
        (verbs.Index, dp4tl_ffcv.index_jpegs),
        (verbs.Features, dp4tl_ffcv.extract_features),
        (verbs.Cluster, dp4tl_ffcv.cluster),
        (verbs.Select, dp4tl_ffcv.select),
        (verbs.Compact, dp4tl_ffcv.compact),
    ],
)
def test_an_option_has_the_default_of_the_argument(
    verb: type[Verb], function: Callable[..., Any]
) -> None:
    defaults = {each.name: each.default for each in fields(verb) if each.default is not MISSING}
    if verb is verbs.Compact:
        assert defaults.pop("selection") is None  # required in Python
    if verb is Prune:
        assert defaults.pop("dry_run") is False  # another function in Python
        assert defaults.pop("surrogate") is None  # required in Python: no recipe is run there
    arguments = signature(function).parameters
    assert defaults == {name: arguments[name].default for name in defaults}


def test_every_recipe_and_writer_is_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in (("train", []), ("writers", ["write"])):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        for path in (ROOT / folder).glob("[a-z]*.py"):
            assert f"• {path.stem.replace('_', '-')} " in shown


@pytest.mark.parametrize(
    "verb", ["", "features", "score random", "write coop", "pretrain-moco", "demo"]
)
def test_help_imports_nothing_heavy_and_no_strangers_file(verb: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('a stranger ran')")
    code = (
        "import sys; from dp4tl_ffcv.cli import main\n"
        "try: main()\n"
        "finally: print([n for n in ('torch', 'numba', 'ffcv', 'cv2') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, *verb.split(), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: dp4tl" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nonsense",
        "write",
        "write nonsense",
        "inspect",
        "score nonsense",
        "inspect a --nonsense",
    ],
)
def test_wrong_usage_exits_with_status_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "option", "status", "shown"),
    [
        (KeyboardInterrupt, "--no-debug", 130, "\ndp4tl: stopped."),
        (ValueError, "--debug", 1, "Traceback"),
    ],
)
def test_ctrl_c_and_debug(
    error: Any, option: str, status: int, shown: str, public: MagicMock,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    public.verify.side_effect = error
    with pytest.raises(SystemExit) as caught:
        main(["verify", "nowhere.beton", option])
    assert caught.value.code == status
    assert capsys.readouterr().err.startswith(shown)


def test_results_are_text_or_json(public: MagicMock, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"kind": "jpeg", "sample": each} for each in range(15)]
    summary = {"a": 0.125, "names": ["x"] * 20, "stored": {"jpg": 2, "raw": 0}, "all": records}
    public.verify.return_value.summary.return_value = summary
    main(["verify", "nowhere.beton", "--json"])
    assert json.loads(capsys.readouterr().out) == summary
    main(["verify", "nowhere.beton"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a", "0.125"]
    assert lines[1].endswith("x, x, ... (20)")
    assert lines[2].split(maxsplit=1) == ["stored", "jpg: 2, raw: 0"]
    assert lines[3].split(maxsplit=1) == ["all", "kind: jpeg, sample: 0"]
    assert len(lines) == 3 + 12 + 1
    assert lines[-1].strip() == "... (15)"
