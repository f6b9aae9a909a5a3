"""The log of a run: lines of JSON, and curves for TensorBoard."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dp4tl_ffcv.utils import RunFolder
from tests.support.training import rows
from train.components.run_log import RunLog


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", {})
    folder.start()
    return folder


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of a stand-in for TensorBoard."""
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append(("open", Path(folder).name, purge_step))

        def add_scalar(self, *point: Any) -> None:
            calls.append(point)

        def close(self) -> None:
            calls.append(("close",))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return calls


def test_a_log_writes_lines_and_losses_in_order_without_tensorboard(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(run)
    loss = torch.tensor(2.5)
    log.loss(2, loss)
    loss.fill_(1.5)  # a graph's output is overwritten by its next replay
    log.loss(4, loss)
    log.flush()
    log.write("epoch", 4, loss=2.0)
    log.close()
    assert rows(run.path)[1:] == [
        {"event": "step", "step": 2, "loss": 2.5},
        {"event": "step", "step": 4, "loss": 1.5},
        {"event": "epoch", "step": 4, "loss": 2.0},
    ]
    assert not (run.path / "tensorboard").exists()


def test_tensorboard_gets_the_numbers_where_it_is_installed(
    run: RunFolder, curves: list[tuple[Any, ...]]
) -> None:
    log = RunLog(run, active=False)  # as on the other ranks: nothing is written
    log.loss(2, torch.tensor(2.5))
    log.write("epoch", 4, loss=2.0)
    log.close()
    assert rows(run.path)[1:] == curves == []
    log = RunLog(run, first_step=3)
    log.write("validation", 6, val_accuracy=0.5, val_accuracy_per_class={"1": 0.5}, robust=None)
    log.close()
    assert curves == [("open", "tensorboard", 4), ("validation/val_accuracy", 0.5, 6), ("close",)]
    assert rows(run.path)[1:][0]["val_accuracy_per_class"] == {"1": 0.5}


def test_later_and_damaged_rows_are_dropped_where_a_run_continues(run: RunFolder) -> None:
    log = RunLog(run)
    for step in (2, 4, 6):
        log.write("step", step, loss=1.0)
    log.close()
    with (run.path / "log.jsonl").open("a") as stream:
        stream.write('[1]\n{\n{"step": null}\n{"step": "1"}\n' + "[" * 10**5 + "\n")
    RunLog(run, first_step=4).close()
    assert [row.get("step") for row in rows(run.path)] == [None, 2, 4]
