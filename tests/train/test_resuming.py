"""A run that is killed goes on with the same batches, and ends with the same bits."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import Images
from train import pretrain
from train.components.resuming import Progress, Snapshot

LONGEST = 500  # seconds; it takes a few when the machine is free
SHARED = {"arch": "resnet8_w16", "resolution": 32, "batch_size": 32, "lr": 0.1, "num_workers": 1}
# Of each: what differs from the run above, and before which step or in which writing it is killed.
CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "plain": ({"epochs": 3, "log_every": 2}, "train_step", 5),
    "averaged and growing": (
        {"epochs": 3, "ema": 0.9, "end_resolution": 64, "ramp": (0, 2)},
        "train_step",
        8,
    ),
    "attacked": ({"iterations": 5, "attack": "fgsm", "robust_steps": 2}, "train_step", 4),
    "while writing": ({"epochs": 3, "optimizer": "adamw", "lr": 0.01}, "save", 2),
    "before the first epoch's end": ({"epochs": 1}, "train_step", 2),
}
# Starts every run in a process of its own, which kills itself with SIGKILL.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from train import pretrain

train, val, out = map(Path, sys.argv[1:4])
ended = {}
for name, (changes, where, count) in json.loads(sys.argv[4]).items():
    child = os.fork()
    if child:
        ended[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        continue
    calls, step, save = 0, pretrain.train_step, torch.save

    def train_step(*arguments):
        global calls
        calls += where == "train_step"
        if where == "train_step" and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    def save_half(value, stream):
        global calls
        calls += where == "save"
        if where == "save" and calls == count:
            stream.write(b"half of a state")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, stream)

    pretrain.train_step, torch.save = train_step, save_half
    pretrain.pretrain(pretrain.Config(train=train, val=val, run=out / name, **changes))
    os._exit(0)
print(json.dumps(ended))
"""


@dataclass(frozen=True)
class Killed:
    """Runs that were killed, and how their processes ended."""

    paths: dict[str, Path]
    runs: Path
    ended: dict[str, int]

    def resume(self, name: str) -> dict[str, Any]:
        """Go on with one, in this process."""
        return pretrain.pretrain(self.config(self.runs / name, name))

    def config(self, run: Path, name: str) -> pretrain.Config:
        return pretrain.Config(run=run, **self.paths, **{**SHARED, **CASES[name][0]})


@pytest.fixture(scope="module")
def killed(photos: Images, other_photos: Images, tmp_path_factory: Any) -> Killed:
    runs = tmp_path_factory.mktemp("killed")
    cases = {name: ({**SHARED, **changes}, *rest) for name, (changes, *rest) in CASES.items()}
    root = Path(pretrain.__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, photos.path, other_photos.path, runs, json.dumps(cases)],
        timeout=LONGEST, text=True, check=False, capture_output=True, cwd=root,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    paths = {"train": photos.path, "val": other_photos.path}
    return Killed(paths, runs, json.loads(ended.stdout.splitlines()[-1]))


def weights(run: Path) -> dict[str, torch.Tensor]:
    file = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    found: dict[str, torch.Tensor] = file["network"]
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of every step that is taken from here on."""
    taken: list[int] = []
    step = pretrain.train_step

    def counted(parts: Any, images: Any, labels: Any, number: int) -> Any:
        taken.append(number)
        return step(parts, images, labels, number)

    monkeypatch.setattr(pretrain, "train_step", counted)
    return taken


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_same_bits(
    name: str, killed: Killed, steps: list[int], tmp_path: Path
) -> None:
    assert killed.ended[name] == -9
    run = killed.runs / name
    assert not (run / "result.json").exists()
    before = [row for row in rows(run) if row["event"] == "epoch"]
    result = killed.resume(name)
    resumed_at = {"averaged and growing": 6, "before the first epoch's end": 0}.get(name, 3)
    assert steps == list(range(resumed_at, result["steps"]))

    whole = pretrain.pretrain(killed.config(tmp_path / "whole", name))
    expected = weights(tmp_path / "whole")
    found = weights(run)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    for key in ("steps", "images", "loss", "val_accuracy", "robust_accuracy"):
        assert result[key] == whole[key], key
    if resumed_at:
        assert result["pretrain_seconds"] > before[0]["seconds"] > 0
        assert result["warm_up_seconds"] > 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.pt"]


@pytest.fixture
def stopped(
    configure: Callable[..., pretrain.Config], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pretrain.Config]:
    """Stop a run of three epochs in the second; return its configuration."""
    step = pretrain.train_step

    def stop(parts: Any, images: Any, labels: Any, number: int) -> Any:
        if number == 4:
            raise InterruptedError
        return step(parts, images, labels, number)

    def make(**changes: Any) -> pretrain.Config:
        config = configure(epochs=3, **changes)
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "train_step", stop)
            with pytest.raises(InterruptedError):
                pretrain.pretrain(config)
        return config

    return make


def test_the_log_says_where_a_run_went_on(stopped: Any, steps: list[int]) -> None:
    config = stopped()
    with (config.run / "log.jsonl").open("a") as stream:
        stream.write('{"event": "st')  # what a kill leaves of a line
    pretrain.pretrain(config)
    found = [(row["event"], row.get("step")) for row in rows(config.run)]
    assert found == [
        ("start", None), ("epoch", 3), ("resume", None), ("continue", 3), ("epoch", 6), ("epoch", 9)
    ]  # fmt: skip
    assert steps == list(range(3, 9))


def test_what_does_not_change_the_result_may_differ_when_a_run_goes_on(
    stopped: Any, steps: list[int]
) -> None:
    pretrain.pretrain(replace(stopped(), log_every=1, save_every=2))
    assert steps == list(range(3, 9))


def test_a_run_starts_over_when_it_is_not_to_resume(stopped: Any, steps: list[int]) -> None:
    pretrain.pretrain(replace(stopped(), resume=False))
    assert steps == list(range(9))


def test_other_settings_neither_continue_nor_delete_a_stopped_run(
    stopped: Any, steps: list[int]
) -> None:
    config = stopped()
    with pytest.raises(ValueError, match=r"unfinished run with other values of lr, seed\."):
        pretrain.pretrain(replace(config, lr=0.05, seed=1))
    assert steps == []
    assert (config.run / "checkpoints" / "resume.pt").exists()
    pretrain.pretrain(replace(config, lr=0.05, overwrite=True))
    assert steps == list(range(9))


@pytest.mark.parametrize("content", [b"", b"no state", None], ids=["empty", "other", "cut"])
def test_a_damaged_state_is_refused(content: bytes | None, stopped: Any) -> None:
    config = stopped()
    path = config.run / "checkpoints" / "resume.pt"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"^`resume` must find the state of this very run"):
        pretrain.pretrain(config)
    assert path.exists()


def test_a_snapshot_gives_back_every_part_and_the_progress(tmp_path: Path) -> None:
    layer, other = nn.Linear(2, 3), nn.Linear(2, 3)
    progress = Progress(epoch=2, step=7, images=70, seconds=1.5, stalled=0.5, loss=0.25)
    Snapshot(tmp_path / "state.pt", {"layer": layer}).save(progress)
    snapshot = Snapshot(tmp_path / "state.pt", {"layer": other})
    assert snapshot.load() == progress
    assert torch.equal(layer.weight, other.weight)
    with pytest.raises(ValueError, match="`resume`"):
        Snapshot(tmp_path / "state.pt", {"layer": other, "head": layer}).load()
    snapshot.remove()
    assert not (tmp_path / "state.pt").exists()
