"""Fixtures of the tests of recipes; see `tests.support.training`."""

import runpy
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.training import (  # noqa: F401  # fixtures
    configure,
    pretrained,
    settings_of_recipe,
    taken,
    target,
    three_classes,
)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `python -m train.NAME`, which must fail, and return its one line of output."""

    def call(name: str, **options: Any) -> str:
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delitem(sys.modules, name, raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        assert caught.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"python -m {name}: ")
        return line

    return call
