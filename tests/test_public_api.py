"""The public names: how many there are, that each one exists, and that importing them is cheap."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dp4tl_ffcv
from dp4tl_ffcv import utils

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("module", [dp4tl_ffcv, utils], ids=["dp4tl_ffcv", "utils"])
def test_every_listed_name_exists(module: ModuleType) -> None:
    assert dir(module) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is getattr(module, name)


def test_at_most_45_names_are_public() -> None:
    assert len(dp4tl_ffcv.__all__) <= 45
    assert not set(dp4tl_ffcv.__all__) & set(utils.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        dp4tl_ffcv.nonsense  # noqa: B018  # reading the attribute is the test


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, dp4tl_ffcv.utils, dp4tl_ffcv.cli\n"
        "print([n for n in ('torch', 'numba', 'ffcv', 'matplotlib') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
