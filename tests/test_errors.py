"""The one line that a command prints for an error: program, flags, and what the system says."""

import sys
import warnings
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

from dp4tl_ffcv.utils import one_line_errors


@dataclass
class Inner:
    batch_size: int = 1


@dataclass
class Settings:
    keep_within: float = 0.5
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("typed", "module", "program"),
    [
        ("/usr/bin/dp4tl", None, "dp4tl"),
        ("dp4tl write coop", "dp4tl_ffcv.writers.coop", "dp4tl write coop"),
        ("mine/my_pretrain.py", None, "my_pretrain.py"),
        ("train/pretrain.py", "train.pretrain", "python -m train.pretrain"),
        (
            "benchmarks/loader/__main__.py",
            "benchmarks.loader.__main__",
            "python -m benchmarks.loader",
        ),
    ],
)
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("`keep_within`,\n`batch_size` `a`"), "--keep-within, --batch-size `a`"),
        (PermissionError(13, "No permission", "o.npz"), "cannot use 'o.npz': No permission."),
        (FileNotFoundError(2, "None", "a.npz"), "there is no file 'a.npz'. Check the path."),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)  # fmt: skip
def test_the_line_names_the_program_the_flags_and_the_fault(
    error: Exception,
    line: str,
    typed: str,
    module: str | None,
    program: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DP4TL_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", [str(Path(typed))])
    main = SimpleNamespace(__spec__=module and ModuleSpec(module, None))
    monkeypatch.setitem(sys.modules, "__main__", main)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended, one_line_errors(Settings()):
        raise error
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"{program}: {line}\n"


def test_a_warning_is_one_line_without_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DP4TL_DEBUG", raising=False)
    formatted = warnings.formatwarning
    with one_line_errors(Inner, program="dp4tl"):
        line = warnings.formatwarning("left \x1b[31mkey\n, see `batch_size`", UserWarning, "a", 1)
    assert warnings.formatwarning is formatted
    assert line == "dp4tl: warning: left \\x1b[31mkey\\n, see --batch-size\n"
