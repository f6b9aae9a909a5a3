"""Recording training dynamics: what is recorded, and that training does not notice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp4tl_ffcv import Dynamics, Selection
from dp4tl_ffcv.loading.orders import random_order
from tests.conftest import Images
from tests.reference.dynamics import predictions
from tests.support.models import assert_same_state
from tests.support.training import Configure, weights
from train import pretrain
from train.components.dynamics import DynamicsRecorder
from train.components.processes import Processes

NAMES = ("probability", "margin", "change")


def test_the_predictions_of_each_sample_are_recorded_and_training_does_not_notice(
    configure: Configure, three_classes: Path, photos: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Tensor, Tensor]] = []
    loss_of = pretrain.loss_of

    def spied(state: Any, images: Tensor, labels: Tensor) -> Tensor:
        handle = state.network.register_forward_hook(
            lambda _, __, outputs: made.append((outputs.detach().double(), labels.clone()))
        )
        loss = loss_of(state, images, labels)
        handle.remove()
        return loss

    monkeypatch.setattr(pretrain, "loss_of", spied)
    changes = {"selection": three_classes, "batch_size": 5, "epochs": 3}
    result = pretrain.pretrain(configure(**changes, record_dynamics=True))
    found = Dynamics.load(configure().run / "dynamics.npz")
    ids = Selection.load(three_classes).indices
    np.testing.assert_array_equal(found.indices, ids)
    assert found.num_samples == 120
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint

    steps = iter(made[1:])  # the first warms up
    logits: dict[int, dict[int, Any]] = {int(each): {} for each in ids}
    for epoch in range(3):
        order = random_order(ids, seed=0, epoch=epoch)[:35]  # seven of 7.2 batches
        for at, (outputs, labels) in zip(range(0, 35, 5), steps, strict=False):
            for sample, row, label in zip(order[at : at + 5], outputs, labels, strict=True):
                assert label == [1, 4, 8].index(photos.labels[sample])
                logits[int(sample)][epoch] = row.numpy(), int(label)
    for row, by_epoch in enumerate(logits.values()):
        for epoch in range(3):
            if epoch not in by_epoch:
                assert all(np.isnan(getattr(found, name)[row, epoch]) for name in NAMES)
                continue
            label = by_epoch[epoch][1]
            pair = [by_epoch[e][0] for e in (epoch - 1, epoch) if e in by_epoch]
            probabilities, margins, changed = predictions(pair, label)
            expected = probabilities[-1], margins[-1], changed[0] if changed else np.nan
            values = [getattr(found, name)[row, epoch] for name in NAMES]
            np.testing.assert_allclose(values, expected, rtol=2e-3, atol=2e-3)
    assert np.isnan(found.margin).sum(axis=0).tolist() == [1, 1, 1]
    assert [path.name for path in (configure().run / "checkpoints").iterdir()] == ["last.pt"]

    plain = pretrain.pretrain(configure(**changes, run=configure().run / "plain"))
    assert_same_state(weights(result), weights(plain))
    assert plain["loss"] == result["loss"]
    assert not (configure().run / "plain" / "dynamics.npz").exists()


def recorder_of(folder: Path) -> DynamicsRecorder:
    return DynamicsRecorder(folder, Processes(torch.device("cpu")), 2)


def add(recorder: DynamicsRecorder, ids: list[int], first_logits: list[float]) -> None:
    outputs = torch.tensor([[value, 0.0] for value in first_logits])
    recorder.add(np.array(ids), outputs, torch.zeros(len(ids), dtype=torch.long))


def test_the_files_of_two_epochs_are_kept_and_a_cut_row_is_removed(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    for epoch in range(5):
        add(recorder, [0, 1], [epoch, 1.0])
        recorder.synchronize()  # in mid-epoch
        with (tmp_path / f"{epoch}-0.rows").open("ab") as stream:
            stream.write(b"half")
        add(recorder, [2], [2.0])
        recorder.end_epoch()
    assert sorted(path.name for path in tmp_path.glob("*.rows")) == [
        "2-0.rows", "3-0.rows", "4-0.rows",
    ]  # fmt: skip
    found = recorder.result(np.arange(4), 4, {})
    np.testing.assert_array_equal(found.margin[:3], [[0, 1, 2, 3, 4], [1] * 5, [2] * 5])
    assert np.isnan(found.margin[3]).all()
    np.testing.assert_array_equal(found.change[1:3], [[np.nan, 0, 0, 0, 0]] * 2)


def test_a_repeated_epoch_replaces_its_rows(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    for epoch in range(3):
        add(recorder, [0, 1], [epoch, 0.0])
        recorder.end_epoch()
    resumed = recorder_of(tmp_path)
    resumed.load_state_dict({"epoch": 1})
    for epoch in (7, 8):
        add(resumed, [1, 0], [5.0, epoch])
        resumed.end_epoch()
    found = resumed.result(np.arange(2), 2, {})
    assert found.margin.tolist() == [[0, 7, 8], [0, 5, 5]]


def test_a_certain_prediction_and_one_class_are_finite(tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path)
    for sign in (1.0, -1.0):
        add(recorder, [0], [1e6 * sign])
        recorder.end_epoch()
    found = recorder.result(np.arange(1), 1, {})
    assert found.margin.tolist() == [[65504, -65504]]
    assert found.probability.tolist() == [[1, 0]]
    assert found.change[0, 1] == 65504
    single = DynamicsRecorder(tmp_path / "one", Processes(torch.device("cpu")), 1)
    single.add(np.array([0]), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    single.end_epoch()
    assert single.result(np.arange(1), 1, {}).margin.tolist() == [[65504]]


def test_attacked_images_are_not_recorded() -> None:
    paths: Any = {"train": Path("train.beton"), "run": Path("run")}
    with pytest.raises(ValueError, match=r"^`record_dynamics`.*`attack`"):
        pretrain.Config(**paths, record_dynamics=True, attack="pgd")


def test_a_run_without_recording_has_the_settings_of_earlier_versions() -> None:
    from train.configs.common import facts_of

    paths: Any = {"train": Path("train.beton"), "run": Path("run")}
    assert "record_dynamics" not in facts_of(pretrain.Config(**paths), 1)
    assert facts_of(pretrain.Config(**paths, record_dynamics=True), 1)["record_dynamics"] is True
