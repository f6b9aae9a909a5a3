"""Pretraining: what it leaves, when it is repeated, how many steps it takes and at which rate."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    BetonError,
    BetonIndex,
    Selection,
    StaleArtifactError,
    evaluation_loader,
    image_fields,
    load_checkpoint,
    write_beton,
)
from tests.conftest import Images, write_photos
from train import pretrain
from train.components.schedules import learning_rate_factor

Configure = Callable[..., pretrain.Config]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every optimiser step that is taken from here on."""
    rates: list[float] = []
    step = torch.optim.SGD.step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    return rates


def test_a_run_leaves_its_config_log_checkpoint_and_result(
    configure: Configure, photos: Images, steps: list[float]
) -> None:
    config = configure()
    result = pretrain.pretrain(config)
    assert json.loads((config.run / "result.json").read_text()) == result
    written = json.loads((config.run / "config.json").read_text())
    assert written["train_fingerprint"] == photos.index.fingerprint
    assert written["epochs"] == 2
    rows = [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows] == ["start", "epoch", "epoch"]
    assert [row["step"] for row in rows[1:]] == [3, 6]
    assert len(steps) == result["steps"] == 6
    assert result["images"] == 6 * 32
    assert result["retained_classes"] == 10
    assert result["retained_samples"] == 120
    model = load_checkpoint(result["checkpoint"], arch="resnet8_w16")
    assert model.num_classes == 10


def test_the_validation_accuracy_is_the_checkpoints(
    configure: Configure, other_photos: Images
) -> None:
    config = configure(epochs=6)
    result = pretrain.pretrain(config)
    model = load_checkpoint(result["checkpoint"]).eval()
    loader = evaluation_loader(other_photos.path, batch_size=40, resolution=32)
    ((images, labels),) = loader
    with torch.inference_mode():
        hits = model(images).argmax(1) == labels
    assert labels.tolist() == other_photos.labels.tolist()
    assert result["val_accuracy"] == pytest.approx(hits.float().mean().item())
    assert result["val_accuracy"] > 0.2  # ten classes: it has learnt something


def test_a_finished_run_is_taken_over_without_training(
    configure: Configure, steps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    first = pretrain.pretrain(configure())
    del steps[:]
    assert pretrain.pretrain(configure()) == first
    assert steps == []
    assert "reused" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{"lr": 0.05}, {"seed": 1}, {"flip": False}], ids=str)
def test_a_changed_configuration_trains_again(
    changes: dict[str, Any], configure: Configure, steps: list[float]
) -> None:
    pretrain.pretrain(configure(epochs=1))
    del steps[:]
    with pytest.raises(ValueError, match="`run`"):
        pretrain.pretrain(configure(epochs=1, **changes))
    assert (configure().run / "checkpoints" / "last.pt").exists()
    assert steps == []
    pretrain.pretrain(configure(epochs=1, overwrite=True, **changes))
    assert len(steps) == 3


def test_a_changed_beton_at_the_same_path_trains_again(
    configure: Configure, photos: Images, steps: list[float], tmp_path: Path
) -> None:
    train = tmp_path / "train.beton"
    shutil.copy(photos.path, train)
    pretrain.pretrain(configure(train=train, epochs=1))
    del steps[:]
    write_photos(train, seed=99)
    pretrain.pretrain(configure(train=train, epochs=1, overwrite=True))
    assert len(steps) == 3


def test_a_changed_selection_at_the_same_path_trains_again(
    configure: Configure, photos: Images, steps: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "selection.npz"
    for classes in ([0, 1, 2], [3, 4, 5]):
        del steps[:]
        Selection.of_classes(photos.index, classes).save(path)
        pretrain.pretrain(configure(selection=path, epochs=1, overwrite=True))
        assert len(steps) == 1


def test_files_that_were_moved_are_the_same_run(
    configure: Configure,
    photos: Images,
    other_photos: Images,
    three_classes: Path,
    steps: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = pretrain.pretrain(configure(epochs=1, selection=three_classes))
    del steps[:]
    monkeypatch.chdir(tmp_path)
    Path("run").rename("moved")
    files = {"train": photos.path, "val": other_photos.path, "selection": three_classes}
    for name, path in files.items():
        shutil.copy(path, name + path.suffix)
    relative = {name: Path(name + path.suffix) for name, path in files.items()}
    assert pretrain.pretrain(configure(epochs=1, run=Path("moved"), **relative)) == first
    assert steps == []


@pytest.mark.parametrize("setting", ["batch_per", "lr_per"])
def test_a_rate_or_batch_of_each_process_makes_their_number_part_of_the_run(
    setting: str, configure: Configure
) -> None:
    def of(config: pretrain.Config, world: int) -> dict[str, Any]:
        return pretrain._fingerprint(config, pretrain.open_data(config), world)

    assert of(configure(), 2) == of(configure(), 4)
    each = configure(**{setting: "process"})
    assert of(each, 2) == of(each, 2)
    assert of(each, 2) != of(each, 4)


@pytest.mark.parametrize("iterations", [2, 5, 6, 7])
def test_iterations_are_exactly_that_many_steps(
    iterations: int, configure: Configure, steps: list[float]
) -> None:
    result = pretrain.pretrain(configure(iterations=iterations, epochs=1, val=None))
    assert len(steps) == result["steps"] == iterations
    assert result["images"] == 32 * iterations
    assert result["val_accuracy"] is None
    assert steps[-1] < max(steps) or iterations == 2
    assert not any("CheckedThread" in type(thread).__name__ for thread in threading.enumerate())


@pytest.mark.parametrize("schedule", ["cyclic", "step", "cosine", "constant"])
def test_the_rate_of_a_run_is_that_of_its_schedule(
    schedule: str, configure: Configure, steps: list[float]
) -> None:
    shape = {"schedule": schedule, "warmup": 0.25, "step_length": 2, "step_ratio": 0.3}
    pretrain.pretrain(configure(epochs=4, lr=0.2, val=None, **shape))
    expected = [
        0.2 * learning_rate_factor(step, num_steps=12, steps_per_epoch=3, **shape)
        for step in range(12)
    ]
    np.testing.assert_allclose(steps, expected)


def test_a_selection_gives_a_head_of_its_own_and_the_retained_counts(
    configure: Configure, three_classes: Path, other_photos: Images
) -> None:
    result = pretrain.pretrain(configure(selection=three_classes))
    assert result["retained_classes"] == 3
    assert result["retained_samples"] == 36
    model = load_checkpoint(result["checkpoint"]).eval()
    assert model.head.out_features == model.num_classes == 3
    # The accuracy counts the validation samples of these classes, under their new labels.
    chosen = np.flatnonzero(np.isin(other_photos.labels, [1, 4, 8]))
    loader = evaluation_loader(other_photos.path, batch_size=40, resolution=32, indices=chosen)
    ((images, labels),) = loader
    new = torch.tensor([{1: 0, 4: 1, 8: 2}[int(label)] for label in labels])
    with torch.inference_mode():
        hits = model(images).argmax(1) == new
    assert result["val_accuracy"] == pytest.approx(hits.float().mean().item())


def test_a_selection_of_another_beton_is_refused(
    configure: Configure, other_photos: Images, three_classes: Path
) -> None:
    config = configure(train=other_photos.path, selection=three_classes)
    with pytest.raises(StaleArtifactError, match="made for another beton"):
        pretrain.pretrain(config)
    assert not (config.run / "result.json").exists()


def test_an_unfinished_beton_is_refused(configure: Configure, unfinished: Path) -> None:
    with pytest.raises(BetonError, match="finished"):
        pretrain.pretrain(configure(train=unfinished))


def test_a_beton_is_only_read(configure: Configure, photos: Images) -> None:
    before = photos.path.read_bytes()
    pretrain.pretrain(configure(epochs=1))
    assert photos.path.read_bytes() == before
    assert BetonIndex.open(photos.path).num_samples == 120


def test_the_command_says_in_one_line_which_betons_a_selection_confuses(
    fail: Callable[..., str],
    photos: Images,
    other_photos: Images,
    three_classes: Path,
    tmp_path: Path,
) -> None:
    paths = {"train": other_photos.path, "selection": three_classes, "run": tmp_path / "run"}
    line = fail("train.pretrain", **paths)
    assert photos.index.fingerprint[:16] in line
    assert other_photos.index.fingerprint[:16] in line


def test_the_command_says_in_one_line_that_a_beton_is_truncated(
    fail: Callable[..., str], truncated: Path, tmp_path: Path
) -> None:
    line = fail("train.pretrain", train=truncated, run=tmp_path / "run")
    assert "copy it again" in line


@pytest.mark.parametrize("name", ["epochs", "iterations", "batch_size", "resolution"])
def test_settings_that_no_run_can_have_are_refused(name: str, configure: Configure) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        configure(**{name: 0})


def test_a_rate_that_loses_the_loss_is_an_error_and_no_result(configure: Configure) -> None:
    config = configure(lr=1e30, epochs=2)
    with pytest.raises(ValueError, match="`lr`"):
        pretrain.pretrain(config)
    assert not (config.run / "result.json").exists()


def test_a_validation_split_of_another_source_is_refused_before_training(
    configure: Configure, photos: Images, steps: list[float], tmp_path: Path
) -> None:
    index = photos.index
    selection = tmp_path / "nine.npz"
    Selection.of_classes(index, [9]).save(selection)
    val = tmp_path / "val.beton"
    samples = [(np.zeros((40, 40, 3), np.uint8), label, 0) for label in (0, 1)]
    write_beton(val, samples, image_fields())
    with pytest.raises(ValueError, match="`val`"):
        pretrain.pretrain(configure(selection=selection, val=val))
    assert steps == []
