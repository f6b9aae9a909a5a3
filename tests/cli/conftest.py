"""Run `dp4tl` in the process of the tests."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from dp4tl_ffcv.cli import main


def flags_of(options: dict[str, Any]) -> list[object]:
    """Return the flags that give a verb its options."""
    flags: list[object] = []
    for name, value in options.items():
        flags.append(f"--{name.replace('_', '-')}")
        flags += [] if value is True else value if isinstance(value, tuple) else [value]
    return flags


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a verb that succeeds, and return what it prints as JSON."""

    def call(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) is None
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb that fails, and return its one line."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments)])
        assert caught.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("dp4tl: ")
        assert "Traceback" not in line
        return line

    return call
