"""Weight decay, the average and the best of the weights, and a blur that checkpoints keep."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dp4tl_ffcv import build_model, load_checkpoint, save_checkpoint
from dp4tl_ffcv.utils import BlurPoolConv, Classifier, replace_head
from tests.support.models import assert_same_state
from train.components.optimizers import AveragedWeights, add_blurpool, make_optimizer
from train.configs.common import RunConfig


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model("resnet8_w16", 5)


def make(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    config = RunConfig(
        train=Path("a"), run=Path("run"), epochs=1, batch_size=1, resolution=32, **settings
    )
    return make_optimizer(model, config)


def images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


def backpropagate_and_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    device = next(model.parameters()).device
    model.train()(images().to(device)).square().sum().backward()
    optimizer.step()


# Optimisers.


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_are_spared_from_decay_if_asked(
    name: Literal["sgd", "adamw"], model: Classifier
) -> None:
    optimizer = make(
        model, optimizer=name, lr=0.5, nesterov=False, weight_decay=0.5, norm_weight_decay=False
    )
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    spared = {key for key, value in model.named_parameters() if torch.equal(before[key], value)}
    norms = {
        f"{key}.{part}"
        for key, layer in model.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    assert len(norms) == 18
    assert spared == norms | {f"network.{model.head_name}.bias"}
    for key, value in model.named_parameters():
        if key not in spared:
            torch.testing.assert_close(value.detach(), 0.75 * before[key])


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
    ],
)
def test_the_optimisers_are_those_of_torch(
    name: Any, kind: Any, options: dict[str, Any], model: Classifier
) -> None:
    other = copy.deepcopy(model)
    ours = make(model, optimizer=name, lr=0.01, weight_decay=0.1, **options)
    theirs = kind(other.parameters(), lr=0.01, weight_decay=0.1, **options)
    for seed in range(3):
        for part, optimizer in ((model, ours), (other, theirs)):
            torch.manual_seed(seed)
            backpropagate_and_step(part, optimizer)
    assert_same_state(model.state_dict(), other.state_dict())


def test_frozen_weights_are_left_out_and_momentum_zero_needs_no_correction(
    model: Classifier,
) -> None:
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    optimizer = make(
        model, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.1, norm_weight_decay=False
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert not optimizer.param_groups[0]["nesterov"]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let weights report a GPU, so that steps are fused. A CPU can run fused steps too."""
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)


def step_after_overflow(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An overflow in the first step, and a good step."""
    scaler = torch.amp.GradScaler("cpu")
    for factor in (float("inf"), 0.5):
        optimizer.zero_grad()
        loss = sum(weight.square().sum() for weight in model.parameters())
        scaler.scale(factor * loss).backward()
        # What the allocator hands out next is not zero by chance.
        junk = [torch.full(w.shape, float("nan")) for w in model.parameters() for _ in range(200)]
        del junk
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_overflow_in_the_first_step_leaves_no_trace_in_the_momentum(
    nesterov: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 4).to(memory_format=torch.channels_last)
    settings: Any = {"optimizer": "sgd", "lr": 0.1, "nesterov": nesterov, "weight_decay": 0.01}
    plain = copy.deepcopy(layer)
    unfused = make(plain, **settings)
    step_after_overflow(plain, unfused)
    request.getfixturevalue("as_on_a_gpu")
    fused = make(layer, **settings)
    assert fused.param_groups[0]["fused"]
    (before, *_), file = fused.state.values(), tmp_path / "resume.pt"
    assert before["momentum_buffer"].is_contiguous(memory_format=torch.channels_last)
    torch.save(fused.state_dict(), file)
    resumed_layer = copy.deepcopy(layer)
    resumed = make(resumed_layer, **settings)
    for state in resumed.state.values():
        state["momentum_buffer"].fill_(7.0)  # which the file's zeros replace
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for trained, optimizer in [(layer, fused), (resumed_layer, resumed)]:
        step_after_overflow(trained, optimizer)
        for own, other in zip(trained.parameters(), plain.parameters(), strict=True):
            assert own.isfinite().all()
            torch.testing.assert_close(own, other)
            torch.testing.assert_close(
                optimizer.state[own]["momentum_buffer"], unfused.state[other]["momentum_buffer"]
            )


@pytest.mark.gpu
def test_a_step_on_a_gpu_is_fused(model: Classifier) -> None:
    model.cuda()
    names: tuple[Literal["sgd", "adamw", "adam"], ...] = ("sgd", "adamw", "adam")
    for name in names:
        optimizer = make(model, optimizer=name, lr=0.1, weight_decay=0.1)
        assert optimizer.param_groups[0]["fused"]
        backpropagate_and_step(model, optimizer)


# Averages.


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_the_recursion(decay: float, model: Classifier) -> None:
    optimizer = make(model, optimizer="sgd", lr=0.01, weight_decay=0.1)
    average = AveragedWeights(model, decay)
    expected = {name: value.numpy().astype(np.float64) for name, value in states(model).items()}
    for step in range(1, 31):
        backpropagate_and_step(model, optimizer)
        average.update()
        weight = min(decay, step / (step + 9))
        for name, value in states(model).items():
            new = value.numpy().astype(np.float64)
            expected[name] = weight * expected[name] + (1 - weight) * new
    own, applied = states(model), states(average.average)
    assert any("running_var" in name for name in applied)
    for name, value in applied.items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-6)
            assert not torch.equal(value, own[name])
        else:
            assert value == own[name] == 30  # batches that a norm has seen


@pytest.mark.gpu
def test_an_update_does_not_wait_for_the_gpu(model: Classifier) -> None:
    average = AveragedWeights(model.cuda(), 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Blur.


def test_strided_convolutions_of_16_channels_are_blurred() -> None:
    model = build_model("resnet18", 5)
    before = dict(model.named_modules())
    add_blurpool(model)
    blurred = {
        name.removeprefix("network.")
        for name, part in model.named_modules()
        if isinstance(part, BlurPoolConv)
    }
    assert blurred == {
        f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in ("conv1", "downsample.0")
    }
    assert all(
        model.get_submodule(f"network.{name}.conv") is before[f"network.{name}"] for name in blurred
    )
    with pytest.raises(ValueError, match=r"`model` has no strided .* blurpool\.$"):
        add_blurpool(model)  # blurred once
    with pytest.raises(ValueError, match="`model`"):
        add_blurpool(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(16, 8, 3)))


def test_a_checkpoint_keeps_the_blur(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8_w16", 5)
    plain = copy.deepcopy(model).eval()
    add_blurpool(model)
    backpropagate_and_step(model, make(model, optimizer="sgd", lr=0.01, weight_decay=0.1))
    save_checkpoint(tmp_path / "blurred.pt", model)
    loaded = load_checkpoint(tmp_path / "blurred.pt", arch="resnet8_w16").eval()
    pixels = images()
    with torch.inference_mode():
        assert torch.equal(loaded(pixels), model.eval()(pixels))
        assert not torch.allclose(loaded(pixels), plain(pixels))
    headless = load_checkpoint(tmp_path / "blurred.pt", headless=True)
    for part in (headless, replace_head(loaded, 3)):
        assert sum(isinstance(layer, BlurPoolConv) for layer in part.modules()) == 4
