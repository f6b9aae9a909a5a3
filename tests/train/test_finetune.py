"""Finetuning: which weights change, how the epoch is chosen, and that the test is read once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    CheckpointError,
    evaluation_loader,
    image_fields,
    load_checkpoint,
    write_beton,
)
from tests.conftest import Images
from train import finetune

MODES = ("linear_probe", "full_finetuning")
# Four of the shared photos' ten classes, under numbers of the target's own.
TARGET_CLASSES = (2, 3, 5, 7)


@pytest.fixture(scope="session")
def target(
    photos: Images, other_photos: Images, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Train, val and test betons of a target with four classes."""
    folder = tmp_path_factory.mktemp("target")
    kept = np.flatnonzero(np.isin(photos.labels, TARGET_CLASSES))
    parts = {"train": (photos, kept[::2]), "val": (photos, kept[1::2])}
    parts["test"] = (other_photos, np.flatnonzero(np.isin(other_photos.labels, TARGET_CLASSES)))
    for name, (images, ids) in parts.items():
        samples = [(images.images[i], TARGET_CLASSES.index(images.labels[i]), int(i)) for i in ids]
        write_beton(folder / f"{name}.beton", samples, image_fields(), class_names=list("abcd"))
    return {name: folder / f"{name}.beton" for name in parts}


@pytest.fixture
def configure(pretrained: Path, target: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """A small finetuning run, with changes."""

    def make(**changes: Any) -> finetune.Config:
        settings = {
            "checkpoint": pretrained,
            **target,
            "run": tmp_path / "run",
            "resolution": 32,
            "epochs": 4,
            "batch_size": 3,  # eight batches: more than a loader has buffers for
            "num_workers": 2,
        }
        return finetune.Config(**{**settings, **changes})

    return make


def body(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """All weights and statistics but the head's."""
    model = load_checkpoint(checkpoint)
    head = {id(part) for part in model.head.parameters()}
    values = model.network.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in values.items() if id(value) not in head}


def accuracy(checkpoint: str, beton: Path) -> float:
    """Top-1 accuracy of a checkpoint, one image at a time."""
    model = load_checkpoint(checkpoint).eval()
    hits = []
    with torch.inference_mode():
        for images, labels in evaluation_loader(beton, batch_size=1, resolution=32):
            hits.append(int(model(images).argmax()) == int(labels))
    return float(np.mean(hits))


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_that_of_the_best_checkpoint(
    mode: str, configure: Callable[..., Any], target: dict[str, Path]
) -> None:
    config = configure(mode=mode, lr=1e-3)
    result = finetune.finetune(config)
    assert json.loads((config.run / "result.json").read_text()) == result
    assert Path(result["checkpoint"]) == config.run / "checkpoints" / "best.pt"
    assert result["test_accuracy"] == pytest.approx(accuracy(result["checkpoint"], target["test"]))
    assert result["val_accuracy"] == pytest.approx(accuracy(result["checkpoint"], target["val"]))
    assert result["test_samples"] == 16
    # Every class has as many test images as the others.
    assert np.mean(list(result["test_accuracy_per_class"].values())) == pytest.approx(
        result["test_accuracy"]
    )
    assert list(result["test_accuracy_per_class"]) == ["0", "1", "2", "3"]
    assert result["mode"] == mode
    rows = [json.loads(line) for line in (config.run / "log.jsonl").read_text().splitlines()]
    on_val = [row["val_accuracy"] for row in rows if row["event"] == "epoch"]
    assert len(on_val) == 4
    assert result["best_epoch"] == int(np.argmax(on_val))
    assert result["val_accuracy"] == max(on_val)


@pytest.mark.parametrize("mode", MODES)
def test_the_head_is_new_and_the_body_changes_in_full_finetuning_alone(
    mode: str, configure: Callable[..., Any], pretrained: Path
) -> None:
    result = finetune.finetune(configure(mode=mode, lr=1e-3))
    model = load_checkpoint(result["checkpoint"])
    assert model.num_classes == model.head.out_features == 4
    before, after = body(pretrained), body(result["checkpoint"])
    assert before.keys() == after.keys()
    assert any("running_mean" in name for name in before)
    same = {name for name in before if torch.equal(before[name], after[name])}
    if mode == "linear_probe":
        assert same == set(before)
    else:
        assert not same


@pytest.mark.parametrize("mode", MODES)
def test_the_test_split_is_loaded_once_after_the_epoch_was_chosen(
    mode: str,
    configure: Callable[..., Any],
    target: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Any] = []
    make_loader, restore = finetune.evaluation_loader, finetune.Best.restore

    def spy_on_loader(beton: Path, **options: Any) -> Any:
        loader = make_loader(beton, **options)
        iterate = type(loader).__iter__

        class Spied(type(loader)):  # type: ignore[misc]  # a subclass made at run time
            def __iter__(self) -> Any:
                events.append(Path(beton).stem)
                return iterate(self)

        loader.__class__ = Spied
        return loader

    def spy_on_restore(self: Any) -> Any:
        events.append("chosen")
        return restore(self)

    monkeypatch.setattr(finetune, "evaluation_loader", spy_on_loader)
    monkeypatch.setattr(finetune.Best, "restore", spy_on_restore)
    finetune.finetune(configure(mode=mode))
    assert events[-2:] == ["chosen", "test"]
    assert events.count("test") == 1
    assert "val" in events


def test_the_first_of_equally_good_epochs_is_kept() -> None:
    part = torch.nn.Linear(1, 1)
    best = finetune.Best(part)
    for epoch, value in enumerate([0.25, 0.5, 0.5, 0.125]):
        torch.nn.init.constant_(part.weight, epoch)
        best.offer(epoch, value)
    assert best.restore() == (1, 0.5)
    assert part.weight.item() == 1.0


def test_a_finished_run_is_taken_over_and_another_mode_trains_again(
    configure: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = finetune.finetune(configure())
    capsys.readouterr()
    assert finetune.finetune(configure()) == first
    assert "reused" in capsys.readouterr().out
    other = finetune.finetune(configure(mode="full_finetuning", epochs=1, overwrite=True))
    assert "reused" not in capsys.readouterr().out
    assert other["mode"] == "full_finetuning"


def test_another_checkpoint_at_the_same_path_trains_again(
    configure: Callable[..., Any],
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "last.pt"
    checkpoint.write_bytes(pretrained.read_bytes())
    finetune.finetune(configure(checkpoint=checkpoint, epochs=1))
    values = torch.load(checkpoint, weights_only=True)
    values["mean"] = [0.4, 0.4, 0.4]
    torch.save(values, checkpoint)
    capsys.readouterr()
    finetune.finetune(configure(checkpoint=checkpoint, epochs=1, overwrite=True))
    assert "reused" not in capsys.readouterr().out


def test_a_checkpoint_of_another_architecture_is_refused(configure: Callable[..., Any]) -> None:
    config = configure(arch="resnet18")
    with pytest.raises(CheckpointError, match=r"resnet18.*resnet8_w16"):
        finetune.finetune(config)
    assert not config.run.exists()


def test_a_file_that_is_no_checkpoint_is_refused(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "not.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="checkpoint"):
        finetune.finetune(configure(checkpoint=tmp_path / "not.pt"))


def test_the_command_says_in_one_line_that_the_architecture_is_another(
    fail: Callable[..., str], pretrained: Path, target: dict[str, Path], tmp_path: Path
) -> None:
    options = {"checkpoint": pretrained, "run": tmp_path / "run", "arch": "resnet18"}
    line = fail("train.finetune", **options, **target)
    assert "resnet8_w16" in line
    assert "pass another checkpoint" in line
