"""Adversarial attacks: bounds, closed forms, losses, and a model that does not change."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import Classifier
from train.components.attacks import Attack, adversarial_loss, make_attack, pgd

SIDE = 8
PIXELS = 3 * SIDE * SIDE
EPSILONS = (3.0, 8 / 3, 0.1, 12.75)


def linear() -> Classifier:
    """A linear classifier of the pixels, whose gradient has the same sign everywhere."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2))
    nn.init.normal_(network[1].weight, std=0.1)
    return Classifier(network, "linear", 2)


def normalised_net() -> Classifier:
    """A small network with batch normalisation and dropout."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * SIDE * SIDE, 4),
    )
    return Classifier(network, "small", 4)


def photos_of(count: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Random images with many pixels at either end of the range and next to it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    ends = rng.choice(np.array([0, 1, 2, 253, 254, 255], np.uint8), pixels.shape)
    pixels = np.where(rng.random(pixels.shape) < 0.5, ends, pixels)
    return torch.from_numpy(pixels).to(dtype)


def labels_of(count: int, num_classes: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, num_classes, count))


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that an attack must not change."""
    return {
        **{name: value.clone() for name, value in model.state_dict().items()},
        "modes": [part.training for part in model.modules()],
        "trainable": [weight.requires_grad for weight in model.parameters()],
        "gradients": [
            None if weight.grad is None else weight.grad.clone() for weight in model.parameters()
        ],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, msg=name)


def loss_on(*batch: Any, kind: Any = "pgd", **options: Any) -> Tensor:
    """The loss of a training step, with the usual criterion."""
    return adversarial_loss(*batch, kind=kind, **{"criterion": nn.CrossEntropyLoss(), **options})


def attacked(model: nn.Module, *batch: Any, **options: Any) -> Tensor:
    """The adversarial images from the same random start in each call."""
    torch.manual_seed(0)
    return pgd(model, *batch, **options)


# Bounds.


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("kind", ["pgd", "fgsm", "trades"])
def test_no_pixel_leaves_epsilon_or_the_range(
    kind: Any, dtype: torch.dtype, epsilon: float
) -> None:
    images = photos_of(16, dtype=dtype)
    if dtype == torch.float32:
        images = (images + torch.rand(images.shape)).clamp(0, 255)  # not on the grid of integers
    before = images.clone()
    attack = make_attack(kind, epsilon=epsilon, steps=3)
    loss = "kl" if kind == "trades" else "cross_entropy"
    adversarial = pgd(linear(), images, labels_of(16), attack, loss=loss)
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad
    assert torch.equal(images, before)
    assert (adversarial - images).abs().max() <= torch.tensor(epsilon)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 255


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("kind", ["pgd", "fgsm"])
def test_a_linear_model_is_attacked_to_its_closed_form(kind: Any, epsilon: float) -> None:
    """With two classes, the gradient has the sign of the difference of the classes' weights."""
    model, images, labels = linear(), photos_of(16), labels_of(16)
    attack = make_attack(kind, epsilon=epsilon, steps=3)
    adversarial = pgd(model, images, labels, attack)
    weight = model.head.weight.detach()
    direction = (weight[1 - labels] - weight[labels]).sign().view(images.shape)
    expected = (images + epsilon * direction).clamp(0, 255)
    reached = torch.isclose(adversarial, expected, rtol=0, atol=3e-5)
    if kind == "pgd":
        assert reached.all()
    else:  # one step of 1.25 epsilon reaches the bound from 1.25 / 2 of all starts
        inner = (images >= epsilon) & (images <= 255 - epsilon)
        assert reached[inner].float().mean() == pytest.approx(0.625, abs=0.03)
        assert (adversarial - images)[inner].mul(direction[inner]).min() > 0.2 * epsilon


@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
@pytest.mark.parametrize("steps", [1, 3])
def test_every_step_follows_the_sign_of_the_gradient(loss: Any, steps: int) -> None:
    model, images, labels = normalised_net().eval(), photos_of(5), labels_of(5, 4)
    torch.manual_seed(0)
    noise = torch.empty(images.shape).uniform_(-3, 3)
    lower, upper = (images - 3.0).clamp(min=0), (images + 3.0).clamp(max=255)
    expected, clean = (images + noise).clamp(lower, upper), model(images).detach().log_softmax(1)
    for _ in range(steps):
        leaf = expected.clone().requires_grad_()
        moved = model(leaf).log_softmax(1)
        divergence = (clean.exp() * (clean - moved)).sum()
        objective = divergence if loss == "kl" else -moved[torch.arange(5), labels].sum()
        (gradient,) = torch.autograd.grad(objective, leaf)
        expected = (leaf.detach() + 1.0 * gradient.sign()).clamp(lower, upper)
    attack = Attack(epsilon=3.0, step_size=1.0, steps=steps)
    found = attacked(model, images, labels, attack, loss=loss)
    assert (found - expected).abs().lt(1e-4).float().mean() > 0.99  # a gradient may be near 0


# The random start.


def test_the_start_is_uniform_within_epsilon() -> None:
    """Without a gradient, the adversarial image is the start."""
    model = linear()
    nn.init.zeros_(model.head.weight)
    images = torch.full((32, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    attack = make_attack("pgd", epsilon=4.0, steps=2)
    start = pgd(model, images, labels_of(32), attack) - images
    assert (start.abs() <= 4).all()
    counts = torch.histc(start, bins=8, min=-4, max=4) / start.numel()
    torch.testing.assert_close(counts, torch.full((8,), 1 / 8), rtol=0, atol=0.02)
    assert len(start.unique()) > 0.9 * start.numel()


# What an attack leaves alone.


@pytest.mark.parametrize("kind", ["pgd", "fgsm", "trades"])
def test_an_attack_leaves_the_model_as_it_was(kind: Any) -> None:
    model, images, labels = normalised_net(), photos_of(6), labels_of(6, 4)
    model.train()
    model.network[3].eval()  # modes and gradients that differ among the parts
    model.network[0].weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = state_of(model)
    loss = "kl" if kind == "trades" else "cross_entropy"
    attack = make_attack(kind, epsilon=3.0, steps=3)
    pgd(model, images, labels, attack, loss=loss)
    assert_same(before, state_of(model))
    loss_on(model, images, labels, attack=attack, kind=kind)
    assert int(model.network[1].num_batches_tracked) == 1  # only the training step counts


def test_a_failure_restores_the_model_which_needs_no_gradients_of_weights() -> None:
    model = normalised_net().train()
    before, needed = state_of(model), []
    model.head.register_forward_pre_hook(lambda *_: needed.append(model.head.weight.requires_grad))
    with pytest.raises(RuntimeError):
        pgd(model, photos_of(2)[..., 1:], labels_of(2), make_attack("pgd", epsilon=3.0, steps=3))
    assert needed == [False]
    assert_same(before, state_of(model))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_attack_works_where_nothing_records_gradients(context: Any) -> None:
    model, images, labels = linear(), photos_of(4), labels_of(4)
    attack = make_attack("pgd", epsilon=3.0, steps=3)
    expected = attacked(model, images, labels, attack)
    with context():
        assert torch.equal(attacked(model, images, labels, attack), expected)


# Half precision.


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not a number in the first half of the columns."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[..., : SIDE // 2] = float("nan")
        gradient[..., SIDE // 2] = float("inf")
        return gradient


def test_a_gradient_that_is_not_a_number_moves_no_pixel() -> None:
    class Network(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(Poison.apply(images))  # type: ignore[no-untyped-call]

    model = Classifier(Network(nn.Flatten(), nn.Linear(PIXELS, 2)), "poisoned", 2)
    images = torch.full((4, 3, SIDE, SIDE), 100.0)
    torch.manual_seed(0)
    start = torch.empty(images.shape).uniform_(-3, 3)
    attack = Attack(epsilon=3.0, step_size=2.0, steps=3)
    change = attacked(model, images, labels_of(4), attack) - images
    poisoned, infinite, usual = change.split([SIDE // 2, 1, SIDE // 2 - 1], dim=3)
    torch.testing.assert_close(poisoned, start[..., : SIDE // 2], rtol=0, atol=1e-5)
    assert (infinite == 3).all()
    assert (usual.abs() == 3).all()


@pytest.mark.parametrize("margin", [1.0, 10.0, 17.0])
def test_half_precision_follows_the_same_gradient(margin: float) -> None:
    """float16 ends at 6e-8: a confident sample's gradient, averaged over a batch, would be zero."""
    model, images = linear(), photos_of(256)
    with torch.no_grad():
        labels = model(images).argmax(1)
        present = model(images).diff(dim=1).abs().median()
        for part in model.head.parameters():
            part.mul_(margin / present)
    attack = Attack(epsilon=3.0, step_size=2.0, steps=3)
    exact = attacked(model, images, labels, attack)
    model.network[1].half()

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = model.network(((pixels - model.mean) / model.std).half())
            return logits

    rounded = attacked(Half(), images, labels, attack)
    assert (rounded == exact).float().mean() > 0.95


def test_autocast_caches_no_frozen_weight() -> None:
    model, images, labels = normalised_net().train(), photos_of(16), labels_of(16, 4)
    attack = make_attack("trades", epsilon=8.0, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_on(model, images, labels, attack=attack, kind="trades")
    loss.backward()
    assert torch.isfinite(loss)
    for weight in model.parameters():
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


# The losses.


@pytest.mark.parametrize("kind", ["pgd", "fgsm"])
def test_the_loss_is_the_criterion_on_the_adversarial_images(kind: Any) -> None:
    model, images, labels = normalised_net().eval(), photos_of(6), labels_of(6, 4)
    attack = make_attack(kind, epsilon=3.0, steps=3)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    adversarial = attacked(model, images, labels, attack)
    torch.manual_seed(0)
    loss = loss_on(model, images, labels, attack=attack, kind=kind, criterion=criterion)
    torch.testing.assert_close(loss, criterion(model(adversarial), labels))
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_trades_loss_and_its_gradient_follow_the_formula_of_the_paper() -> None:
    model, images, labels = normalised_net().eval(), photos_of(6), labels_of(6, 4)
    attack = make_attack("trades", epsilon=8.0, steps=4)
    adversarial = attacked(model, images, labels, attack, loss="kl")
    torch.manual_seed(0)
    loss = loss_on(model, images, labels, kind="trades", attack=attack, beta=2.5)
    clean, moved = model(images).log_softmax(1), model(adversarial).log_softmax(1)
    divergence = (clean.exp() * (clean - moved)).sum(1)
    assert (divergence > 0).all()
    expected = 2.5 * divergence.mean() - clean[torch.arange(6), labels].mean()
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, model.head.bias)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


# Wrapped models.


@pytest.fixture
def lone_process() -> Iterator[None]:
    """A group of one process, which is enough for DistributedDataParallel."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("lone_process")
@pytest.mark.parametrize("kind", ["pgd", "fgsm", "trades"])
def test_a_distributed_model_gets_the_gradients_of_the_plain_one(kind: Any) -> None:
    images, labels = photos_of(6), labels_of(6, 4)
    attack = make_attack(kind, epsilon=3.0, steps=2)
    gradients = []
    for wrap in (lambda model: model, DistributedDataParallel):
        plain = normalised_net().train()
        plain.network[3].p = 0.0
        model = wrap(plain)
        passes: list[Any] = []
        model.register_forward_hook(lambda *parts, passes=passes: passes.append(parts[0]))
        torch.manual_seed(0)
        for _ in range(2):  # a second step fails if the first left the reducer unfinished
            loss_on(model, images, labels, attack=attack, kind=kind).backward()
        gradients.append([weight.grad for weight in plain.parameters()])
    assert len(passes) == 2  # of the wrapper: none for the attacks
    torch.testing.assert_close(*gradients)


def test_a_compiled_model_is_attacked_the_same() -> None:
    model, images, labels = normalised_net().train(), photos_of(6), labels_of(6, 4)
    attack = make_attack("pgd", epsilon=3.0, steps=2)
    expected = attacked(model, images, labels, attack)
    compiled: Any = torch.compile(model, backend="aot_eager")
    before = state_of(compiled)
    actual = attacked(compiled, images, labels, attack)
    assert_same(before, state_of(compiled))
    assert model.training
    assert torch.equal(actual, expected)


# Settings.


def test_the_kinds_have_their_usual_steps() -> None:
    assert make_attack("pgd", epsilon=3, steps=3) == Attack(epsilon=3, step_size=2, steps=3)
    assert make_attack("trades", epsilon=8, steps=10).step_size == pytest.approx(1.6)
    assert make_attack("fgsm", epsilon=2, steps=3) == Attack(epsilon=2, step_size=2.5, steps=1)
    assert make_attack("pgd", epsilon=3, steps=3, step_size=1.5).step_size == 1.5
    assert make_attack("fgsm", epsilon=3, steps=3, step_size=1.5).step_size == 1.5


@pytest.mark.gpu
def test_an_attack_on_a_gpu_stays_there_and_within_its_bounds() -> None:
    model = build_model("resnet18", 10).cuda().to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, device="cuda")
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (8,), device="cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            attack = make_attack("pgd", epsilon=3.0, steps=3)
            adversarial = pgd(model, images, labels, attack)
        assert adversarial.is_cuda
        assert adversarial.is_contiguous(memory_format=torch.channels_last)
        change = (adversarial - images).abs()
        assert change.max() <= 3
        assert change[(images >= 3) & (images <= 252)].eq(3).float().mean() > 0.7
