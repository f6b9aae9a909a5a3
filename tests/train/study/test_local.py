"""The launcher `local`: its processes, their GPUs, and how they end."""

import os
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from train.components.study.launchers import local
from train.components.study.stages import Stage

_SLEEPS = 600.0  # seconds


def report(stage: Stage, _: int | None) -> dict[str, Any]:
    """Do a stage's work: return the process and its GPU, or sleep."""
    if stage.facts.get("sleeps"):
        (stage.root / "pid").write_text(str(os.getpid()))
        time.sleep(_SLEEPS)
    return {"pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}


@pytest.fixture(autouse=True)
def _work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "run_stage", report)


@pytest.mark.parametrize(
    ("visible", "names"), [("2,3", {"2", "3"}), ("GPU-a1, GPU-b2", {"GPU-a1", "GPU-b2"})]
)
def test_a_process_gets_a_gpu_of_those_that_are_visible(
    visible: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with local.Local() as launcher:
        assert launcher.slots == 2
        running = [launcher.submit(Stage(kind=kind, facts={}, root=tmp_path)) for kind in "ab"]
        assert {each.result()["gpu"] for each in running} == names


def test_a_stopped_study_ends_its_processes_and_no_others(tmp_path: Path) -> None:
    other = get_context("spawn").Process(target=time.sleep, args=(_SLEEPS,))
    other.start()
    try:
        with suppress(KeyboardInterrupt), local.Local(1) as launcher:
            launcher.submit(Stage(kind="sleep", facts={"sleeps": True}, root=tmp_path))
            while not (tmp_path / "pid").exists():
                time.sleep(0.02)
            raise KeyboardInterrupt
        pid = int((tmp_path / "pid").read_text())
        assert not Path(f"/proc/{pid}").exists()
        assert other.is_alive()
    finally:
        other.kill()
        other.join()
