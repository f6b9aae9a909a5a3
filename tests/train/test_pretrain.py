"""Pretraining: what a run leaves, how many steps it takes and at which rate, what it rejects."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import (
    BetonIndex,
    Selection,
    StaleArtifactError,
    image_fields,
    load_checkpoint,
    write_beton,
)
from dp4tl_ffcv.beton.manifest import new_manifest, read_manifest
from tests.conftest import Images
from tests.support.labels import write_labels
from tests.support.training import Configure, accuracy_of, rows
from train import pretrain
from train.components.data import names_of
from train.components.schedules import learning_rate_factor


def test_a_run_leaves_its_config_log_checkpoint_and_result(
    configure: Configure, photos: Images, other_photos: Images, taken: list[dict[str, Any]]
) -> None:
    config = configure()
    before = photos.path.read_bytes()
    result = pretrain.pretrain(config)
    assert json.loads((config.run / "result.json").read_text()) == result
    written = json.loads((config.run / "config.json").read_text())
    assert written["train"] == photos.index.fingerprint
    assert written["epochs"] == 2
    assert [row["event"] for row in rows(config.run)] == ["start", "epoch", "epoch"]
    assert [row["step"] for row in rows(config.run)[1:]] == [3, 6]
    assert len(taken) == result["steps"] == 6
    assert result["images"] == 6 * 32
    assert result["retained_classes"] == 10
    assert result["retained_samples"] == 120
    assert result["world_size"] == 1
    assert result["robust_accuracy"] is None
    model = load_checkpoint(result["checkpoint"], arch="resnet8_w16")
    assert (model.num_classes, model.class_names) == (10, photos.index.class_names())
    assert photos.path.read_bytes() == before


def test_a_run_parses_each_beton_once(
    configure: Configure, three_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    parse = BetonIndex.open.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, path: Any, **options: Any) -> BetonIndex:
        parsed.append(Path(path).name)
        index: BetonIndex = parse(cls, path, **options)
        return index

    monkeypatch.setattr(BetonIndex, "open", classmethod(counted))
    pretrain.pretrain(configure(selection=three_classes, val_every=1))
    assert sorted(parsed) == ["other.beton", "photos.beton"]


def test_a_run_learns_and_the_validation_accuracy_is_that_of_its_checkpoint(
    configure: Configure, other_photos: Images
) -> None:
    result = pretrain.pretrain(configure(epochs=6))
    accuracy = accuracy_of(result["checkpoint"], other_photos.path)
    assert result["val_accuracy"] == pytest.approx(accuracy)
    assert result["val_accuracy"] > 0.2  # ten classes


@pytest.mark.parametrize("iterations", [2, 7])
def test_iterations_are_exactly_that_many_steps(
    iterations: int, configure: Configure, taken: list[dict[str, Any]]
) -> None:
    result = pretrain.pretrain(configure(iterations=iterations, epochs=1, val=None))
    assert len(taken) == result["steps"] == iterations
    assert result["images"] == 32 * iterations
    assert result["val_accuracy"] is None
    assert not any("CheckedThread" in type(thread).__name__ for thread in threading.enumerate())


@pytest.mark.parametrize("schedule", ["cyclic", "step"])
def test_the_rate_of_a_run_is_that_of_its_schedule(
    schedule: str, configure: Configure, taken: list[dict[str, Any]]
) -> None:
    shape: Any = {"schedule": schedule, "warmup": 0.25, "step_length": 2, "step_ratio": 0.3}
    pretrain.pretrain(configure(epochs=4, lr=0.2, val=None, **shape))
    expected = [
        0.2 * learning_rate_factor(step, num_steps=12, steps_per_epoch=3, **shape)
        for step in range(12)
    ]
    np.testing.assert_allclose([step["lr"] for step in taken], expected)


def test_a_selection_gives_a_head_of_its_own_and_the_retained_counts(
    configure: Configure, three_classes: Path, photos: Images, other_photos: Images
) -> None:
    result = pretrain.pretrain(configure(selection=three_classes))
    assert result["retained_classes"] == 3
    assert result["retained_samples"] == 36
    model = load_checkpoint(result["checkpoint"])
    assert model.head.out_features == model.num_classes == 3
    names = photos.index.class_names()
    assert model.class_names == (names[1], names[4], names[8])
    # The accuracy counts the validation samples of these classes, under their new labels.
    chosen = np.flatnonzero(np.isin(other_photos.labels, [1, 4, 8]))
    accuracy = accuracy_of(result["checkpoint"], other_photos.path, chosen, {1: 0, 4: 1, 8: 2})
    assert result["val_accuracy"] == pytest.approx(accuracy)


def test_a_selection_of_another_beton_is_rejected(
    configure: Configure, other_photos: Images, three_classes: Path
) -> None:
    config = configure(train=other_photos.path, selection=three_classes)
    with pytest.raises(StaleArtifactError, match="made for another beton"):
        pretrain.pretrain(config)
    assert not config.run.exists()


def test_the_command_says_in_one_line_that_a_beton_is_truncated(
    fail: Callable[..., str], truncated: Path, tmp_path: Path
) -> None:
    line = fail("train.pretrain", train=truncated, run=tmp_path / "run")
    assert "truncated.beton" in line


def test_classes_without_names_give_outputs_without_names(tmp_path: Path) -> None:
    index = write_labels(tmp_path / "a.beton", [0, 2, 1])
    assert names_of(index, [0, 2]) == ()
    manifest = read_manifest(index.path)
    assert manifest is not None
    with new_manifest(index.path, replace(manifest, class_names=("cat", "dog"))):
        pass
    index = BetonIndex.open(index.path)
    assert names_of(index, [1]) == ("dog",)
    assert names_of(index, range(3)) == ()


def test_a_split_with_classes_in_another_order_is_rejected(
    configure: Configure, other_photos: Images, taken: list[dict[str, Any]], tmp_path: Path
) -> None:
    val, names = tmp_path / "val.beton", other_photos.index.class_names()
    images = zip(other_photos.images, other_photos.labels, range(40), strict=True)
    write_beton(val, list(images), image_fields(), class_names=[*names[:8], names[9], names[8]])
    message = f"^class 8 is '{names[8]}' in `train`, but '{names[9]}' in `val`. Write all splits"
    with pytest.raises(StaleArtifactError, match=message):
        pretrain.pretrain(configure(val=val))
    assert taken == []


def test_a_validation_split_of_another_source_is_rejected_before_training(
    configure: Configure, photos: Images, taken: list[dict[str, Any]], tmp_path: Path
) -> None:
    selection = tmp_path / "nine.npz"
    Selection.of_classes(photos.index, [9]).save(selection)
    val = tmp_path / "val.beton"
    samples = [(np.zeros((40, 40, 3), np.uint8), label, 0) for label in (0, 1)]
    write_beton(val, samples, image_fields())
    with pytest.raises(ValueError, match="`val`"):
        pretrain.pretrain(configure(selection=selection, val=val))
    assert taken == []
