"""Two splits beside the shared photos, and a source that was pretrained for two epochs."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dp4tl_ffcv import BetonIndex, Selection
from tests.conftest import Images
from train import pretrain

# Quick on a CPU: 120 images make 3 steps an epoch.
SMALL = {"arch": "resnet8_w16", "resolution": 32, "batch_size": 32, "epochs": 2, "num_workers": 1}


@pytest.fixture
def configure(photos: Images, other_photos: Images, tmp_path: Path) -> Callable[..., Any]:
    """A small pretraining run of the photos, with changes."""

    def make(**changes: Any) -> pretrain.Config:
        paths = {"train": photos.path, "val": other_photos.path, "run": tmp_path / "run"}
        return pretrain.Config(**{**SMALL, "lr": 0.1, **paths, **changes})

    return make


@pytest.fixture(scope="session")
def three_classes(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selection") / "three.npz"
    Selection.of_classes(BetonIndex.open(photos.path), [1, 4, 8]).save(path)
    return path


@pytest.fixture(scope="session")
def pretrained(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with ten classes."""
    run = tmp_path_factory.mktemp("pretrained")
    result = pretrain.pretrain(pretrain.Config(train=photos.path, run=run, lr=0.1, **SMALL))
    return Path(result["checkpoint"])


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `python -m train.NAME` on what it refuses, and return its one line."""

    def call(name: str, **options: Any) -> str:
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delitem(sys.modules, name, raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        assert caught.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{name}: ")
        return line

    return call
