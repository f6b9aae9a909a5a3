"""A run of any recipe: stopped and resumed, finished and reused, rejected in a used folder."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from dp4tl_ffcv import Selection, load_checkpoint, save_checkpoint
from dp4tl_ffcv.loading import loader
from dp4tl_ffcv.loading.reading.reading_threads import STALLED_AFTER
from tests.conftest import Images, write_photos
from tests.support.models import assert_same_state
from tests.support.training import (
    PRETRAIN,
    RECIPES,
    Configure,
    rows,
    weights,
)
from train import pretrain
from train.components.counters import Counters
from train.components.processes import Processes
from train.components.saved_state import SavedState
from train.components.session import Session

LONGEST = 500  # seconds; it takes a few when the machine is free
ALWAYS = 1e-9  # minutes: save after every step
WHOLE = {
    "pretrain": {},
    "finetune": {"mode": "full_finetuning", "lr": 1e-3, "epochs": 2, "save_every": 1},
    "pretrain_moco": {},
}


@dataclass(frozen=True)
class Whole:
    """A run without interruption."""

    recipe: str
    config: Any
    result: dict[str, Any]

    def again(self, run: Path | None = None, **changes: Any) -> dict[str, Any]:
        """Run the same settings again, with changes."""
        return RECIPES[self.recipe](replace(self.config, run=run or self.config.run, **changes))


@pytest.fixture(scope="module", params=WHOLE)
def whole(
    request: pytest.FixtureRequest,
    settings_of_recipe: Configure,
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    recipe = request.param
    config = settings_of_recipe(recipe, tmp_path_factory.mktemp("whole") / "run", **WHOLE[recipe])
    return Whole(recipe, config, RECIPES[recipe](config))


@pytest.mark.parametrize("recipe", WHOLE)
def test_every_loader_waits_as_long_as_the_run_says(
    recipe: str, settings_of_recipe: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float | None] = []
    choose = loader.choose_timeout
    monkeypatch.setattr(
        loader, "choose_timeout", lambda given: found.append(given) or choose(given)
    )
    config = settings_of_recipe(recipe, tmp_path / "run", **{**WHOLE[recipe], "epochs": 1})
    assert config.timeout == STALLED_AFTER
    RECIPES[recipe](replace(config, timeout=77.0))
    assert set(found) == {77.0}
    RECIPES[recipe](config)  # the result does not depend on it
    assert set(found) == {77.0}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each step that any recipe takes from here on."""
    taken: list[int] = []
    count = Session.count

    def counted(self: Session, *batch: Any) -> None:
        taken.append(self.step)
        count(self, *batch)

    monkeypatch.setattr(Session, "count", counted)
    return taken


def stop_at(number: int, recipe: str, config: Any) -> None:
    """Start a run and interrupt it in a step."""
    count = Session.count

    def stop(self: Session, *batch: Any) -> None:
        if self.step == number:
            raise KeyboardInterrupt
        count(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "count", stop)
        with pytest.raises(KeyboardInterrupt):
            RECIPES[recipe](config)


def assert_same_run(result: dict[str, Any], whole: dict[str, Any]) -> None:
    """Two runs have the same weights and the same results, except for times and places."""
    assert_same_state(weights(result), weights(whole))
    other = {"settings", "checkpoint", "environment", "images_per_second", "stall_share"}
    for key in whole.keys() - other:
        if not key.endswith("seconds"):
            assert result[key] == whole[key], key


# -- stopped runs --------------------------------------------------------------------------------
@pytest.mark.parametrize("minutes", [0, ALWAYS], ids=["epochs", "minutes"])
def test_a_stopped_run_continues_to_the_same_weights(
    minutes: float, whole: Whole, steps: list[int], tmp_path: Path
) -> None:
    per_epoch, total = {"finetune": (8, 16)}.get(whole.recipe, (3, 6))
    config = replace(whole.config, run=tmp_path / "run", save_every_minutes=minutes)
    stop_at(per_epoch + 1, whole.recipe, config)
    resumed_at = per_epoch + 1 if minutes else per_epoch
    with (config.run / "log.jsonl").open("a") as stream:
        stream.write('{"event": "st')  # a kill cuts a line
    torch.manual_seed(123)  # random numbers do not depend on what came before
    del steps[:]
    result = RECIPES[whole.recipe](config)
    assert steps == list(range(resumed_at, total))
    assert_same_run(result, whole.result)
    found = [(row["event"], row.get("step")) for row in rows(config.run)]
    assert found == [
        ("start", None), ("epoch", per_epoch), ("resume", None), ("continue", resumed_at),
        ("epoch", total),
    ]  # fmt: skip
    assert rows(config.run)[-1]["loss"] == rows(whole.config.run)[-1]["loss"]
    assert rows(config.run)[-1]["seconds"] > rows(config.run)[1]["seconds"] > 0
    (left,) = (config.run / "checkpoints").iterdir()
    assert left == Path(result["checkpoint"])


# Changes to a small pretraining, and before which step or in which writing it is killed.
KILLED: dict[str, tuple[dict[str, Any], str, int]] = {
    "averaged, attacked and growing": (
        {"epochs": 3, "ema": 0.9, "end_resolution": 64, "ramp": (0, 2), "attack": "fgsm"},
        "train_step",
        8,
    ),
    "between two batches": (
        {"ema": 0.9, "attack": "fgsm", "order": "quasi_random", "save_every_minutes": ALWAYS},
        "train_step",
        6,
    ),
    "while writing": ({"iterations": 7, "optimizer": "adamw", "lr": 0.01}, "save", 2),
    "while writing in mid-epoch": ({"save_every_minutes": ALWAYS}, "save", 5),
    "before the first epoch's end": ({"epochs": 1}, "train_step", 2),
    "recording, saved in mid-epoch": (
        {"epochs": 3, "record_dynamics": True, "save_every_minutes": ALWAYS},
        "train_step",
        9,
    ),
    "InfoBatch, between two batches": (
        {
            "epochs": 4,
            "batch_size": 16,
            "infobatch": 0.5,
            "record_dynamics": True,
            "save_every_minutes": ALWAYS,
        },
        "train_step",
        15,
    ),
    "recording, saved once": (
        {"epochs": 4, "record_dynamics": True, "save_every": 2},
        "train_step",
        12,
    ),
}
# Starts every run in a process of its own, which kills itself with SIGKILL.
SCRIPT = """
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
    calls, step, save = iter(range(1, 100)), pretrain.train_step, torch.save

    def train_step(*arguments):
        if where == "train_step" and next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    def save_half(value, stream):
        if where == "save" and next(calls) == count:
            stream.write(b"half of a state")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, stream)

    pretrain.train_step, torch.save = train_step, save_half
    pretrain.pretrain(pretrain.Config(train=train, val=val, run=out / name, **changes))
    os._exit(0)
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def killed(photos: Images, other_photos: Images, tmp_path_factory: Any) -> Path:
    """The folder of the killed runs."""
    runs: Path = tmp_path_factory.mktemp("killed")
    cases = {name: ({**PRETRAIN, **changes}, *rest) for name, (changes, *rest) in KILLED.items()}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, photos.path, other_photos.path, runs, json.dumps(cases)],
        timeout=LONGEST, text=True, check=False, capture_output=True,
        cwd=Path(pretrain.__file__).parent.parent,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == dict.fromkeys(KILLED, -signal.SIGKILL)
    return runs


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_continues_to_the_same_weights(
    name: str, killed: Path, settings_of_recipe: Configure, steps: list[int], tmp_path: Path
) -> None:
    config = settings_of_recipe("pretrain", killed / name, **KILLED[name][0])
    assert not (config.run / "result.json").exists()
    result = pretrain.pretrain(config)
    resumed_at = {
        "averaged, attacked and growing": 6, "between two batches": 5, "while writing": 3,
        "while writing in mid-epoch": 4, "recording, saved in mid-epoch": 8,
        "recording, saved once": 6, "InfoBatch, between two batches": 14,
    }.get(name, 0)  # fmt: skip
    assert steps == list(range(resumed_at, result["steps"]))
    assert_same_run(result, pretrain.pretrain(replace(config, run=tmp_path / "whole")))
    files = [folder / "dynamics.npz" for folder in (config.run, tmp_path / "whole")]
    assert [file.exists() for file in files] == [config.record_dynamics] * 2
    if config.record_dynamics:
        assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in (config.run / "checkpoints").iterdir()] == ["last.pt"]


@pytest.mark.parametrize(("seconds", "saved_at"), [(40, [2, 4, 6]), (25, [3, 6]), (0, [6])])
def test_states_are_saved_by_the_clock(
    seconds: int, saved_at: list[int], configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch. A state that is due after the last step is saved after the epoch."""
    now, found, count, save = [0.0], list[int](), Session.count, SavedState.save

    def slow(self: Session, *batch: Any) -> None:
        now[0] += seconds
        count(self, *batch)

    def noted(self: SavedState, counters: Counters, *rest: Any) -> None:
        found.append(counters.step)
        assert counters.epoch == counters.step // 3
        save(self, counters, *rest)

    monkeypatch.setattr("train.components.saved_state.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Session, "count", slow)
    monkeypatch.setattr(SavedState, "save", noted)
    pretrain.pretrain(configure(val=None, save_every=100, save_every_minutes=1))
    assert found == saved_at


@pytest.fixture
def stopped(configure: Configure) -> pretrain.Config:
    """A pretraining of two epochs that was stopped in its second epoch."""
    config: pretrain.Config = configure()
    stop_at(4, "pretrain", config)
    return config


def test_other_settings_do_not_continue_a_stopped_run_unless_they_have_no_effect(
    stopped: pretrain.Config, steps: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"lr, seed"):
        pretrain.pretrain(replace(stopped, lr=0.05, seed=1))
    assert steps == []
    pretrain.pretrain(replace(stopped, log_every=1, save_every=2, cache="ram"))
    assert steps == [3, 4, 5]


@pytest.mark.parametrize("changes", [{"resume": False}, {"lr": 0.05, "overwrite": True}], ids=str)
def test_a_stopped_run_starts_over_if_asked(
    changes: dict[str, Any], stopped: pretrain.Config, steps: list[int]
) -> None:
    pretrain.pretrain(replace(stopped, **changes))
    assert steps == list(range(6))


def test_a_corrupt_or_incomplete_state_is_rejected(stopped: pretrain.Config) -> None:
    path = stopped.run / "checkpoints" / "resume.pt"
    values, other = torch.load(path, weights_only=True), BytesIO()
    del values["states"]["optimizer"]
    torch.save(values, other)
    for content in (b"", b"no state", path.read_bytes()[:2000], other.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^cannot resume: .*--no-resume"):
            pretrain.pretrain(stopped)
        assert path.read_bytes() == content


# -- finished runs -------------------------------------------------------------------------------
@pytest.fixture
def moved(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the run folder."""
    return Path(shutil.copytree(whole.config.run, tmp_path / "moved"))


def test_a_finished_run_is_reused_wherever_its_files_are(
    whole: Whole,
    moved: Path,
    steps: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert json.loads((whole.config.run / "result.json").read_text()) == whole.result
    monkeypatch.chdir(tmp_path)
    files = {}
    for name in ("train", "val", "test", "checkpoint"):
        if path := getattr(whole.config, name, None):
            files[name] = Path(shutil.copy(path, name))
    again = whole.again(Path("moved"), **files, num_workers=2, log_every=7)
    checkpoint = Path("moved/checkpoints") / Path(whole.result["checkpoint"]).name
    assert again == {**whole.result, "checkpoint": str(checkpoint)}
    assert "reused" in capsys.readouterr().out
    assert steps == []


def test_other_settings_are_rejected_in_the_folder_of_a_finished_run(
    whole: Whole, moved: Path, steps: list[int]
) -> None:
    changed: list[dict[str, Any]] = [{"lr": 0.05}, {"seed": 1}, {"flip": False}]
    for changes in changed:
        with pytest.raises(ValueError, match="overwrite"):
            whole.again(moved, **changes)
    assert steps == []
    assert Path(whole.result["checkpoint"]).exists()


def test_other_file_contents_are_rejected_in_the_folder_of_a_finished_run(
    whole: Whole, moved: Path, photos: Images, steps: list[int], tmp_path: Path
) -> None:
    if whole.recipe == "finetune":
        model = load_checkpoint(whole.config.checkpoint)
        model.head.bias.data += 1
        save_checkpoint(tmp_path / "other.pt", model)
        changes = {"checkpoint": tmp_path / "other.pt"}
    else:
        Selection.of_classes(photos.index, range(10)).save(tmp_path / "all.npz")
        with pytest.raises(ValueError, match="overwrite"):
            whole.again(moved, selection=tmp_path / "all.npz")
        write_photos(tmp_path / "train.beton", seed=99)
        changes = {"train": tmp_path / "train.beton"}
    with pytest.raises(ValueError, match="overwrite"):
        whole.again(moved, **changes)
    assert steps == []


def test_overwrite_replaces_a_finished_run(whole: Whole, moved: Path, steps: list[int]) -> None:
    result = whole.again(moved, seed=1, overwrite=True)
    assert steps == list(range(len(steps)))
    assert json.loads((moved / "result.json").read_text()) == result
    assert result["loss" if "loss" in result else "val_accuracy"] is not None


@pytest.mark.parametrize("setting", ["batch_per", "lr_per"])
def test_the_number_of_processes_is_part_of_a_run_that_depends_on_it(
    setting: str, configure: Configure
) -> None:
    def facts(config: Any, world_size: int) -> dict[str, Any]:
        group = Processes(torch.device("cpu"), 0, world_size)
        return Session("pretrain", config, group, {}).folder.config

    assert facts(configure(), 2) == facts(configure(), 4)
    each = configure(**{setting: "process"})
    assert facts(each, 2) == facts(each, 2)
    assert facts(each, 2) != facts(each, 4)
