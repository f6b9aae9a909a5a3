"""Finetuning: which weights change, how the epoch is chosen, and that the test is read once."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    BetonIndex,
    CheckpointError,
    PrunedLoader,
    StaleArtifactError,
    evaluation_loader,
    image_fields,
    load_checkpoint,
    write_beton,
)
from tests.conftest import Images
from tests.support.models import assert_same_state
from tests.support.training import (
    TARGET_CLASSES,
    Configure,
    accuracy_of,
    rows,
    weights,
)
from train import finetune
from train.components.data import open_splits
from train.components.optimizers import BestWeights
from train.components.processes import Processes

RECIPE = "finetune"  # for `configure`
MODES = ("linear_probe", "full_finetuning", "from_scratch")


def body(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """All weights and statistics but the head's."""
    model = load_checkpoint(checkpoint)
    head = {id(part) for part in model.head.parameters()}
    values = model.network.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in values.items() if id(value) not in head}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which splits are read from here on, and when the epoch is chosen."""
    found: list[str] = []
    iterate, restore = PrunedLoader.__iter__, BestWeights.restore

    def spy_on_loader(self: PrunedLoader) -> Any:
        found.append(Path(self.fname).stem)
        return iterate(self)

    def spy_on_restore(self: BestWeights) -> Any:
        found.append("chosen")
        return restore(self)

    monkeypatch.setattr(PrunedLoader, "__iter__", spy_on_loader)
    monkeypatch.setattr(BestWeights, "restore", spy_on_restore)
    return found


def test_folders_stand_for_their_files(
    configure: Configure, target: dict[str, Path], pretrained: Path
) -> None:
    result = finetune.finetune(configure())
    folders = {"data": target["train"].parent, "checkpoint": pretrained.parents[1]}
    config = configure(train=None, val=None, test=None, **folders)
    assert finetune.finetune(config) == result  # the finished run of the same files


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_that_of_the_best_checkpoint(
    mode: str, configure: Configure, target: dict[str, Path], pretrained: Path, events: list[str]
) -> None:
    config = configure(mode=mode, lr=1e-3, log_every=5)
    result = finetune.finetune(config)
    # The test split is read once, after the epoch was chosen; a probe reads each split once.
    rest = ["train", "val"] if mode == "linear_probe" else ["train", "val"] * 4
    assert events == ["train", *rest, "chosen", "test"]  # a batch of train warms up
    assert json.loads((config.run / "result.json").read_text()) == result
    assert Path(result["checkpoint"]) == config.run / "checkpoints" / "best.pt"
    for split in ("val", "test"):
        accuracy = accuracy_of(result["checkpoint"], target[split])
        assert result[f"{split}_accuracy"] == pytest.approx(accuracy)
    assert (result["mode"], result["test_samples"]) == (mode, 16)
    assert result["warm_up_seconds"] > 0
    log = rows(config.run)
    losses = {row["step"]: row["loss"] for row in log if row["event"] == "step"}
    assert list(losses) == list(range(5, 32 + 1, 5))
    assert all(np.isfinite(list(losses.values())))
    epochs = [row for row in log if row["event"] == "epoch"]
    assert [row["step"] for row in epochs] == [8, 16, 24, 32]
    on_val = [row["val_accuracy"] for row in epochs]
    assert result["best_epoch"] == int(np.argmax(on_val))
    assert result["val_accuracy"] == max(on_val)
    # The head is new. A probe leaves the rest as it was.
    model = load_checkpoint(result["checkpoint"])
    assert model.num_classes == model.head.out_features == 4
    assert model.class_names == tuple("abcd")
    before, after = body(pretrained), body(result["checkpoint"])
    assert before.keys() == after.keys()
    assert any("running_mean" in name for name in before)
    assert any("num_batches_tracked" in name for name in before)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == (set(before) if mode == "linear_probe" else set())


def test_nothing_of_a_checkpoint_gets_into_a_training_from_scratch(
    configure: Configure, pretrained: Path, tmp_path: Path
) -> None:
    options = {"mode": "from_scratch", "epochs": 1}
    without = configure(**options)
    result = finetune.finetune(without)
    given = configure(**options, checkpoint=pretrained, run=tmp_path / "given")
    assert_same_state(weights(result), weights(finetune.finetune(given)))
    trained_on = load_checkpoint(result["checkpoint"]).trained_on
    assert trained_on == BetonIndex.open(without.train).fingerprint


@pytest.mark.parametrize("mode", ["linear_probe", "full_finetuning"])
def test_classes_count_equally_in_their_mean_and_the_worst_is_named(
    mode: str, configure: Configure, photos: Images, tmp_path: Path
) -> None:
    ids = np.concatenate(
        [
            np.flatnonzero(photos.labels == c)[:n]
            for c, n in zip(TARGET_CLASSES, (9, 5, 2), strict=False)
        ]
    )
    samples = [(photos.images[i], TARGET_CLASSES.index(photos.labels[i]), 0) for i in ids]
    write_beton(tmp_path / "test.beton", samples, image_fields())  # none of the last class
    result = finetune.finetune(configure(mode=mode, lr=1e-3, test=tmp_path / "test.beton"))
    model = load_checkpoint(result["checkpoint"]).eval()
    ((images, labels),) = evaluation_loader(tmp_path / "test.beton", batch_size=16, resolution=32)
    with torch.inference_mode():
        hits = (model(images).argmax(1) == labels).numpy()
    expected = {str(c): hits[labels.numpy() == c].mean() for c in range(3)}
    assert result["test_accuracy_per_class"] == pytest.approx(expected)
    assert result["test_accuracy"] == pytest.approx(hits.mean())
    assert result["test_accuracy_class_mean"] == pytest.approx(np.mean(list(expected.values())))
    assert result["test_accuracy_worst_class"] == pytest.approx(min(expected.values()))
    assert expected[result["worst_class"]] == pytest.approx(min(expected.values()))
    assert result["test_samples"] == 16


def test_the_first_of_equally_good_epochs_is_kept() -> None:
    part = torch.nn.Linear(1, 1)
    best = BestWeights(part)
    for epoch, value in enumerate([0.25, 0.5, 0.5, 0.125]):
        torch.nn.init.constant_(part.weight, epoch)
        best.offer(epoch, value)
    assert best.restore() == (1, 0.5)
    assert part.weight.item() == 1.0


def test_a_checkpoint_of_another_architecture_is_rejected(configure: Configure) -> None:
    config = configure(arch="resnet18")
    with pytest.raises(CheckpointError, match="resnet8_w16"):
        finetune.finetune(config)
    assert not config.run.exists()


# Optimiser and schedule.


@pytest.mark.parametrize("mode", MODES[:2])
def test_settings_reach_the_optimiser_and_the_loss(
    mode: str, configure: Configure, taken: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    smoothed: list[float] = []
    forward = torch.nn.CrossEntropyLoss.forward

    def noted(self: Any, *args: Any) -> Any:
        smoothed.append(self.label_smoothing)
        return forward(self, *args)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", noted)
    finetune.finetune(configure(mode=mode, lr=1e-3, epochs=3, label_smoothing=0.125))
    expected = 1e-3 * (1 + np.cos(np.pi * np.arange(24) / 24)) / 2  # a cosine to zero
    np.testing.assert_allclose([step["lr"] for step in taken], expected)
    assert {step["kind"] for step in taken} == {"AdamW"}
    assert smoothed == [0.125] * (24 if mode == "linear_probe" else 1 + 24)
    del taken[:]
    options = {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.25, "schedule": "constant"}
    options["norm_weight_decay"] = False
    finetune.finetune(configure(mode=mode, epochs=1, lr=1e-3, overwrite=True, **options))
    assert len(taken) == 8
    for step in taken:
        assert step["kind"] == "SGD"
        assert step["lr"] == 1e-3
        assert (step["momentum"], step["nesterov"]) == (0.5, False)
        assert step["weight_decays"] == [0.25, 0]  # weights, biases


# Several processes.


def test_several_processes_for_a_probe_are_rejected(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Processes(torch.device("cpu"), 0, 2)
    monkeypatch.setattr(finetune, "processes", lambda: nullcontext(two))
    with pytest.raises(ValueError, match=r"linear_probe.*without torchrun"):
        finetune.finetune(configure())


# Splits that do not belong together.


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("val", "test")])
def test_a_split_in_the_place_of_another_is_rejected(
    first: str, second: str, configure: Configure, target: dict[str, Path], tmp_path: Path
) -> None:
    copied = Path(shutil.copy(target[first], tmp_path / "copied.beton"))
    config = configure(**{second: copied})
    with pytest.raises(ValueError, match=rf"^`{second}` holds the same samples as `{first}`"):
        finetune.finetune(config)
    assert not config.run.exists()


def test_splits_of_one_layout_with_other_pixels_are_accepted(tmp_path: Path) -> None:
    for name, brightness in (("train", 0), ("val", 100), ("test", 200)):
        images = [np.full((32, 32, 3), brightness + label, np.uint8) for label in range(4)]
        samples = [(image, label, label) for label, image in enumerate(images)]
        fields = image_fields(mode="raw")
        write_beton(tmp_path / f"{name}.beton", samples, fields)
    paths = {name: tmp_path / f"{name}.beton" for name in ("train", "val", "test")}
    splits = open_splits(**paths)
    assert len({index.fingerprint for index in splits.values()}) == 1


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_with_classes_in_another_order_is_rejected(
    name: str, configure: Configure, photos: Images, tmp_path: Path
) -> None:
    images = [(photos.images[i], i % 4, i) for i in range(8)]
    path = tmp_path / "other.beton"
    write_beton(path, images, image_fields(), class_names=list("abdc"))
    config = configure(**{name: path})
    with pytest.raises(
        StaleArtifactError, match=rf"^class 2 is 'c' in `train`, but 'd' in `{name}`"
    ):
        finetune.finetune(config)
    assert not config.run.exists()


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_with_classes_that_are_not_trained_is_rejected(
    name: str, configure: Configure, other_photos: Images
) -> None:
    config = configure(**{name: other_photos.path})
    with pytest.raises(ValueError, match=rf"^`{name}` has 10 classes, but `train` has 4"):
        finetune.finetune(config)
    assert not config.run.exists()
