"""Options of pretraining, and their effect on what is trained, saved and validated."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dp4tl_ffcv import load_checkpoint
from tests.conftest import Images
from tests.support.training import Configure, accuracy_of, rows, weights
from train import pretrain
from train.components.data import open_source
from train.components.processes import Processes


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batch of every step that is taken from here on, and the weights after the step."""
    found: list[dict[str, Any]] = []
    step = pretrain.train_step

    def spied(state: Any, images: Tensor, labels: Tensor, number: int) -> Tensor:
        batch = {"images": images.clone(), "labels": labels.clone(), "state": state}
        loss = step(state, images, labels, number)
        after = {name: value.clone() for name, value in state.model.network.state_dict().items()}
        found.append({**batch, "weights": after})
        return loss

    monkeypatch.setattr(pretrain, "train_step", spied)
    return found


def test_the_resolution_grows_along_its_ramp(configure: Configure, seen: list[Any]) -> None:
    growing = {"resolution": 32, "end_resolution": 96, "ramp": (0, 2), "val": None}
    pretrain.pretrain(configure(epochs=3, batch_size=60, **growing))
    assert [step["images"].shape[-1] for step in seen] == [32, 32, 64, 64, 96, 96]
    # At equal iterations each resolution has the same share of the run, in more epochs.
    seen.clear()
    pretrain.pretrain(configure(epochs=3, batch_size=60, iterations=12, overwrite=True, **growing))
    assert [step["images"].shape[-1] for step in seen] == [32] * 4 + [64] * 4 + [96] * 4


def test_the_averaged_weights_are_validated_and_saved(
    configure: Configure, seen: list[Any], other_photos: Images
) -> None:
    result = pretrain.pretrain(configure(ema=0.5))
    name = f"{load_checkpoint(result['checkpoint']).head_name}.weight"
    trajectory = [step["weights"][name] for step in seen]
    average = seen[0]["state"].averaged.average.state_dict()[f"network.{name}"]
    assert torch.equal(weights(result)[name], average)
    assert not torch.equal(weights(result)[name], trajectory[-1])
    # The last update takes in half of the last weights, at most.
    assert (average - trajectory[-1]).norm() < (average - trajectory[0]).norm()
    accuracy = accuracy_of(result["checkpoint"], other_photos.path)
    assert result["val_accuracy"] == pytest.approx(accuracy)


def test_a_full_head_has_the_classes_and_labels_of_the_source(
    configure: Configure, seen: list[Any], three_classes: Path, photos: Images
) -> None:
    result = pretrain.pretrain(configure(selection=three_classes, full_head=True, ema=0.9))
    assert {int(label) for step in seen for label in step["labels"]} == {1, 4, 8}
    model = load_checkpoint(result["checkpoint"])
    assert (model.num_classes, model.class_names) == (10, photos.index.class_names())
    assert (result["retained_classes"], result["retained_samples"]) == (3, 36)
    assert result["val_accuracy_per_class"].keys() == {"1", "4", "8"}


def test_the_accuracy_of_each_class_goes_by_its_label_in_the_source(
    configure: Configure, three_classes: Path
) -> None:
    result = pretrain.pretrain(configure(selection=three_classes, epochs=4, val_every=2))
    per_class = result["val_accuracy_per_class"]
    assert per_class.keys() == {"1", "4", "8"}
    assert np.mean(list(per_class.values())) == pytest.approx(result["val_accuracy"])  # 4 of each
    log = rows(configure().run)
    assert [row["step"] for row in log if row["event"] == "validation"] == [2]


def test_a_blurred_model_is_saved_and_read_again(configure: Configure) -> None:
    options = {"blurpool": True, "label_smoothing": 0.1, "norm_weight_decay": False, "tta": True}
    result = pretrain.pretrain(configure(val_resolution=48, optimizer="adamw", lr=0.01, **options))
    model = load_checkpoint(result["checkpoint"])
    assert any(name.endswith("blur_filter") for name in model.state_dict())
    assert 0 <= result["val_accuracy"] <= 1


def test_the_gradient_is_clipped(configure: Configure, seen: list[Any]) -> None:
    lr, clip = 0.5, 1e-3
    plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "lr": lr}
    pretrain.pretrain(configure(grad_clip=clip, val=None, **plain))
    names = [name for name, _ in seen[0]["state"].model.network.named_parameters()]
    for before, after in pairwise(seen):
        squares = sum(
            (after["weights"][name] - before["weights"][name]).square().sum() for name in names
        )
        assert float(squares) ** 0.5 == pytest.approx(lr * clip, rel=1e-2)


@pytest.mark.parametrize("kind", ["pgd", "fgsm", "trades"])
def test_attacked_training_sees_adversarial_images_within_the_bound(
    kind: str, configure: Configure, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[Tensor] = []
    validated_on: list[Tensor] = []
    forward = pretrain.Classifier.forward

    def spied(self: Any, images: Tensor) -> Tensor:
        (trained_on if self.training else validated_on).append(images.detach().clone())
        return forward(self, images)

    monkeypatch.setattr(pretrain.Classifier, "forward", spied)
    attack = {"attack": kind, "attack_epsilon": 4.0, "attack_steps": 2, "robust_steps": 3}
    result = pretrain.pretrain(configure(epochs=1, val_batch_size=40, **attack))
    assert len(trained_on) == 1 + len(seen)  # the first warms up
    for step, images in zip(seen, trained_on[1:], strict=True):
        clean = step["images"].float()
        changes = (images[-len(clean) :] - clean).abs()
        assert 1 < changes.max() <= 4
    clean, *attacked = validated_on[-5:]  # three steps, and the images that they lead to
    assert 1 < (attacked[-1] - clean).abs().max() <= 4
    assert 0 <= result["robust_accuracy"] <= result["val_accuracy"]


@pytest.mark.parametrize("mode", ["off", "reduce-overhead"])
def test_the_trained_network_is_compiled_and_the_bare_one_saved(
    mode: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    def compiled(model: torch.nn.Module, mode: str, dynamic: bool) -> torch.nn.Module:
        assert dynamic is False  # each side of a ramp has its own kernels
        modes.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    pretrain.pretrain(configure(epochs=1, compile=mode, val=None))
    assert modes == ([] if mode == "off" else [mode])


@pytest.mark.parametrize(("val_batch_size", "sizes"), [(None, [32, 8]), (30, [30, 10])])
def test_validation_has_its_own_batch_size(
    val_batch_size: int | None, sizes: list[int], configure: Configure, other_photos: Images
) -> None:
    config = configure(val_batch_size=val_batch_size)
    group = Processes(torch.device("cpu"))
    source = open_source(config.train, None, config.val)
    validation = pretrain.make_validation(config, source, group)
    assert validation is not None
    batches = validation.batches(np.arange(other_photos.index.num_samples), group.device)
    assert [len(images) for images, _ in batches] == sizes


def test_a_run_that_is_killed_in_a_validation_makes_it_again(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(state: Any) -> dict[str, Any]:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "validate", killed)
        with pytest.raises(InterruptedError):
            pretrain.pretrain(configure(val_every=1))
    pretrain.pretrain(configure(val_every=1))
    log = rows(configure().run)
    assert [row["step"] for row in log if row["event"] == "validation"] == [3]


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
@pytest.mark.parametrize("attack", ["none", "pgd", "trades"])
def test_no_step_waits_for_the_gpu(
    amp: str, attack: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = pretrain.train_step

    def watched(*arguments: Any) -> Tensor:
        if arguments[-1] == 0:
            return step(*arguments)  # the optimiser's state is made
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(pretrain, "train_step", watched)
    options = {"amp": amp, "attack": attack, "ema": 0.9, "grad_clip": 1.0, "robust_steps": 2}
    result = pretrain.pretrain(configure(**options))
    assert 0 <= result["stall_share"] <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_run_trains_as_one_that_is_not(mode: str, configure: Configure) -> None:
    losses = [
        pretrain.pretrain(configure(amp="off", compile=name, run=configure().run / name))["loss"]
        for name in ("off", mode)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
