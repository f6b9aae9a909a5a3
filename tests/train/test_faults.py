"""Runs that diverge, are killed between two writes, or meet another run in their folder."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dp4tl_ffcv.atomic import lock_folder
from tests.support.training import RECIPES, Configure, rows, weights
from train import pretrain
from train.components.processes import Processes
from train.components.saved_state import SavedState
from train.components.session import Session

ALWAYS = 1e-9  # minutes: save after every step


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_learning_rate_that_loses_the_loss_is_an_error_and_no_result(
    recipe: str, settings_of_recipe: Configure, tmp_path: Path
) -> None:
    changes = {"finetune": {"mode": "full_finetuning", "optimizer": "sgd"}}.get(recipe, {})
    config = settings_of_recipe(recipe, tmp_path / "run", **{"lr": 1e30, **changes})
    with pytest.raises(ValueError, match="Lower `lr`"):
        RECIPES[recipe](config)
    assert not (config.run / "result.json").exists()


# -- saved states --------------------------------------------------------------------------------
def test_weights_that_are_not_finite_do_not_replace_a_saved_state(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that makes a weight infinite is finite."""
    config = configure(save_every_minutes=ALWAYS)
    train_step = pretrain.train_step

    def diverge(state: Any, images: Tensor, labels: Tensor, step: int) -> Tensor:
        loss = train_step(state, images, labels, step)
        if step == 4:
            next(state.model.parameters()).data[0, 0, 0, 0] = float("inf")
        return loss

    monkeypatch.setattr(pretrain, "train_step", diverge)
    with pytest.raises(ValueError, match=r"the weights are no longer finite\. Lower `lr`"):
        pretrain.pretrain(config)
    state = torch.load(config.run / "checkpoints" / "resume.pt", weights_only=True)
    assert state["counters"]["step"] == 4
    assert all(value.isfinite().all() for value in state["states"]["model"].values())


def test_the_clock_is_compared_between_processes_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a tenth of a second, and a state is due every minute."""
    now, asked, due = [0.0], list[int](), list[int]()
    monkeypatch.setattr("train.components.saved_state.time.monotonic", lambda: now[0])

    def note(self: Processes, *numbers: int) -> Sequence[int]:
        asked.append(step)
        return numbers

    monkeypatch.setattr(Processes, "from_rank_zero", note)
    state = SavedState(tmp_path / "resume.pt", Processes(torch.device("cpu")), every_minutes=1)
    for step in range(1, 1201):
        now[0] += 0.1
        if state.is_due(step) and not due:
            due.append(step)
            assert state.is_due(step)  # until it is saved
    assert due == [600]
    assert len(asked[: asked.index(600)]) < 10


# -- kills ---------------------------------------------------------------------------------------
def test_an_epoch_has_one_row_after_a_kill_before_its_state_was_saved(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(epochs=3, log_every=2)
    save = Session.save

    def stop(self: Session, *, last: bool = False) -> None:
        if self.epoch == 2:
            raise KeyboardInterrupt
        save(self, last=last)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(config)
    assert [row["step"] for row in rows(config.run) if row["event"] == "epoch"] == [3, 6]
    pretrain.pretrain(config)
    for event, expected in {"epoch": [3, 6, 9], "step": [2, 4, 6, 8]}.items():
        assert [row["step"] for row in rows(config.run) if row["event"] == event] == expected


def test_a_kill_after_the_result_leaves_no_state(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(SavedState, "delete", lambda _: None)
        result = pretrain.pretrain(config)
    assert (config.run / "checkpoints" / "resume.pt").exists()
    assert weights(pretrain.pretrain(config)).keys() == weights(result).keys()
    assert [path.name for path in (config.run / "checkpoints").iterdir()] == ["last.pt"]


HOLD = """
import sys, time
from pathlib import Path
from dp4tl_ffcv.atomic import lock_folder

folder = Path(sys.argv[1])
folder.mkdir()
lock_folder(folder, folder)
print("locked", flush=True)
time.sleep(500)
"""


def test_two_processes_do_not_use_one_run_folder(configure: Configure) -> None:
    config = configure(epochs=1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(config.run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match="another process"):
            pretrain.pretrain(config)
        assert list(config.run.iterdir()) == []
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    pretrain.pretrain(config)
    assert json.loads((config.run / "result.json").read_text())["steps"] == 3
    os.close(lock_folder(config.run, config.run))  # the run has released it


# -- ranks ---------------------------------------------------------------------------------------
LOSE = """
import os, signal
import torch
from dp4tl_ffcv.utils import one_line_errors
from train.components.processes import processes

with one_line_errors(), processes() as group:
    group.sum_over(torch.ones(3))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.sum_over(torch.ones(3))
"""


def test_a_rank_whose_peer_is_killed_ends_with_an_error_that_says_so() -> None:
    """Without torchrun, which would stop it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LOSE], env={**os.environ, **group, "RANK": rank},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        _, left = ranks[0].communicate(timeout=100)
        assert ranks[1].wait(timeout=10) == -signal.SIGKILL
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert ranks[0].returncode == 1
    assert "rank 0 of 2 lost the connection to another rank" in left.splitlines()[-1]
