"""Per-sample gradient norms, compared with separate backward passes."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from dp4tl_ffcv import build_model
from dp4tl_ffcv.utils import gradient_norms

CLASSES = 5
METHODS = ("ghost", "vmap", "loop")


def twin(model: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Return the norm of each sample's gradient, computed alone, in float64."""
    model = copy.deepcopy(model).double().eval()
    images = images.double() if images.is_floating_point() else images
    norms = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad(set_to_none=True)
        logits = model(image[None])
        (logits.logsumexp(dim=1)[0] - logits[0, label]).backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        norms.append(sum(float((gradient**2).sum()) for gradient in gradients) ** 0.5)
    return np.array(norms)


def check(model: nn.Module, batch: tuple[Tensor, Tensor], method: Any = "ghost") -> None:
    """Check the norms of a batch against separate backward passes."""
    expected = twin(model, *batch)
    found = gradient_norms(model, [batch], method=method)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert np.ptp(expected) > 0  # samples differ, or a mean would pass


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights, biases and running statistics that all differ."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is not None:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    with torch.no_grad():
        for value in model.parameters():
            spread = 0.3 if value.ndim < 2 else value[0].numel() ** -0.5
            centre = 0.7 if value.ndim < 2 else 0.0
            value.copy_(centre + spread * torch.randn(value.shape, generator=generator))
    return model


def data(*shape: int, count: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((count, *shape), generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def pooled(*layers: nn.Module, channels: int) -> nn.Module:
    """Return a model of layers, the mean over positions, and a head."""
    mean = Net(lambda _, x: x.flatten(2).mean(2))
    return nn.Sequential(*layers, mean, nn.Linear(channels, CLASSES))


class Net(nn.Module):
    """Layers by name, and a function `forward(net, images)`."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def net(forward: Callable[[Any, Tensor], Tensor], inner: int = 4, **layers: Any) -> Net:
    """Build a net of the layers `body` and `head`, and more."""
    known = {"body": nn.Linear(6, inner), "head": nn.Linear(inner, CLASSES)}
    return Net(forward, **known | layers)


def shared() -> nn.Module:
    """One layer of each kind, used twice, and dropout."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.norm(net.twice(net.stem(x)).relu())
        x = net.norm(net.twice(x).relu()).flatten(2).mean(2)
        return net.head(net.drop(net.mix(net.mix(x).relu())))

    return Net(
        forward,
        stem=nn.Conv2d(3, 4, 3, padding=1),
        twice=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        mix=nn.Linear(4, 4),
        drop=nn.Dropout(),
        head=nn.Linear(4, CLASSES),
    )


def unused() -> nn.Module:
    """A layer that the output does not depend on, and one that never runs."""

    def forward(net: Any, x: Tensor) -> Tensor:
        net.other(x)
        return net.head(net.body(x).relu())

    return net(forward, other=nn.Linear(6, 4), idle=nn.Linear(6, 4))


def in_place() -> nn.Module:
    """Operations that overwrite the output of a layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        x.relu_()
        x = net.second(x)
        x += 1.0
        return net.head(x.flatten(2).mean(2))

    return net(forward, body=nn.Conv2d(3, 4, 3), second=nn.Conv2d(4, 4, 3))


def conv(**options: Any) -> Callable[[], nn.Module]:
    return lambda: pooled(
        nn.Conv2d(3, 6, **{"kernel_size": 3, **options}),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1),
        channels=4,
    )


def frozen(names: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = shared()
        for name, value in model.named_parameters():
            value.requires_grad_(not name.startswith(tuple(names.split())))
        return model

    return build


# Models that `ghost` supports: a name, the model and the shape of an image.
KNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, CLASSES), (7,)),
    "linear without bias": (lambda: nn.Linear(7, CLASSES, bias=False), (7,)),
    "rows of a matrix": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Flatten(), nn.Linear(12, 5)),
                         (4, 5)),
    "long rows": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Flatten(), nn.Linear(60, 5)), (20, 2)),
    "convolution": (conv(), (3, 9, 8)),
    "stride": (conv(stride=(2, 3), padding=(1, 2)), (3, 11, 12)),
    "stride that leaves a rest": (conv(kernel_size=2, stride=3), (3, 10, 9)),
    "1 x 1 with stride": (conv(kernel_size=1, stride=2), (3, 6, 5)),
    "tall kernel": (conv(kernel_size=(5, 2), padding=(2, 0)), (3, 7, 8)),
    "dilation": (conv(dilation=(2, 3), padding=2), (3, 12, 13)),
    "groups and all": (conv(groups=3, stride=2, dilation=2, padding=(2, 1)), (3, 12, 11)),
    "valid": (conv(padding="valid"), (3, 8, 9)),
    "circular": (conv(padding=1, padding_mode="circular", stride=2), (3, 8, 9)),
    "reflect and same": (conv(padding="same", kernel_size=4, padding_mode="reflect"), (3, 8, 9)),
    "channels last": (lambda: conv()().to(memory_format=torch.channels_last), (3, 8, 9)),
    "one dimension": (
        lambda: pooled(
            nn.Conv1d(3, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6), nn.Conv1d(6, 4, 2,
            dilation=2), nn.Conv1d(4, 4, 3, groups=2, padding="same"), channels=4
        ),
        (3, 17),
    ),
    "normalisations": (
        lambda: pooled(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6, affine=False),
            nn.GroupNorm(3, 6), nn.ReLU(), channels=6,
        ),
        (3, 9, 9),
    ),
    "batch norm of few positions": (
        lambda: pooled(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), channels=4), (3, 4, 5)),
    "normalised vectors": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.LayerNorm(4, bias=False),
                              nn.Linear(4, 5)), (6,)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Flatten(),
                              nn.Linear(24, 5)), (4, 5)),
    "layer norm over two axes": (
        lambda: nn.Sequential(nn.LayerNorm((4, 5)), nn.Flatten(), nn.Linear(20, 5)), (3, 4, 5)[1:]),
    "shared layers": (shared, (3, 7, 6)),
    "frozen weights": (frozen("twice.weight mix.weight"), (3, 7, 6)),
    "frozen biases": (frozen("stem.bias norm.bias head.bias"), (3, 7, 6)),
    "head alone": (frozen("stem twice norm mix"), (3, 7, 6)),
    "body alone": (frozen("head mix"), (3, 7, 6)),
    "unused layers": (unused, (6,)),
    "in place": (in_place, (3, 8, 8)),
    "resnet8": (lambda: build_model("resnet8_w16", CLASSES), (3, 32, 32)),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES), (3, 40, 40)),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_ghost_norms_equal_separate_passes(name: str) -> None:
    build, shape = KNOWN[name]
    check(lively(build()), data(*shape))


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["groups and all", "frozen weights", "unused layers", "resnet8"])
def test_slower_methods_equal_separate_passes(name: str, method: Any) -> None:
    build, shape = KNOWN[name]
    check(lively(build()), data(*shape), method)


@pytest.mark.parametrize("method", METHODS)
def test_norms_do_not_depend_on_the_sizes_of_batches(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (images, labels) = lively(shared()), data(3, 7, 6, count=11)
    expected = twin(model, images, labels)
    cuts = ((0, 4), (4, 4), (4, 5), (5, 11))
    batches = [(images[a:b], labels[a:b]) for a, b in cuts]
    for at_once in (1, 3, 100):
        monkeypatch.setattr("dp4tl_ffcv.scoring.gradients.norms.GHOST_IMAGES", at_once)
        each = sum(value.numel() * 4 for value in model.parameters())
        monkeypatch.setattr("dp4tl_ffcv.scoring.gradients.norms.VMAP_BYTES", at_once * each)
        found = gradient_norms(model, batches, method=method)
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_labels_may_be_columns_and_images_uint8() -> None:
    model = lively(build_model("resnet8_w16", CLASSES))
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    check(model, (images, torch.tensor([[0], [3], [1]], dtype=torch.int32)))


# Models that `ghost` does not suit.


def tied() -> nn.Module:
    """Two layers that share a weight."""
    model = net(lambda m, x: m.head(m.again(m.body(x).relu())), inner=6, again=nn.Linear(6, 6))
    model.again.weight = model.body.weight
    return model


class Standardised(nn.Conv2d):
    """A subclass with another forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def overwritten() -> nn.Module:
    """The input of a layer is changed after the layer ran."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = x * 1.0
        y = net.body(x.detach())
        with torch.no_grad():
            x.add_(1.0)
        return net.head(y.relu() + x)

    return net(forward, inner=6)


def recurrent() -> nn.Module:
    return net(lambda m, x: m.head(m.body(x)[0][:, -1]), body=nn.RNN(3, 4, batch_first=True))


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12,
        num_classes=CLASSES,
    )  # fmt: skip


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, CLASSES))
    model[0].register_forward_hook(lambda _, fed, returned: returned + fed[0][:, :4])
    return model


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "own parameter": (
        lambda: net(lambda m, x: m.head(m.scale * m.body(x)), scale=nn.Parameter(torch.ones(4))),
        (6,),
    ),
    "weight reused": (
        lambda: net(lambda m, x: m.head(F.linear(m.body(x), m.body.weight)), inner=6), (6,)),
    "tied": (tied, (6,)),
    "changed subclass": (lambda: pooled(Standardised(3, 4, 3), channels=4), (3, 6, 6)),
    "more rows than samples": (
        lambda: net(
            lambda m, x: m.head(m.body(x.reshape(-1, 3)).relu().reshape(len(x), 8)),
            body=nn.Linear(3, 4), head=nn.Linear(8, CLASSES),
        ),
        (6,),
    ),
    "recurrent": (recurrent, (5, 3)),
    "vision transformer": (vit, (3, 16, 16)),
    "hooked": (hooked, (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_auto_falls_back_if_ghost_does_not_suit_the_model(name: str) -> None:
    build, shape = UNKNOWN[name]
    model, batch = lively(build()), data(*shape)
    with pytest.raises(ValueError, match="does not suit the model"):
        gradient_norms(model, [batch], method="ghost")
    check(model, batch, "auto")


def test_overwritten_inputs_are_rejected() -> None:
    with pytest.raises(ValueError, match="changed in place"):  # autograd rejects it too
        gradient_norms(lively(overwritten()), [data(6)], method="ghost")


def of_batch_mean(strength: float) -> nn.Module:
    """Subtracts the mean over the batch, so that a gradient depends on the other samples."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.body(x)
        return net.head(y - strength * y.mean(dim=0))

    return net(forward)


def sequence_first() -> nn.Module:
    """Takes the batch as the first axis: each row of `body` is one step of all samples."""

    def forward(net: Any, x: Tensor) -> Tensor:
        steps = net.body(x.transpose(0, 1)).relu()
        return net.head(1 + 0.05 * steps.mean(dim=0))  # so the head's norm hides the body's

    return net(forward, body=nn.Linear(3, 4))


def one_row() -> nn.Module:
    """Feeds a layer one row with as many numbers as the batch has samples."""
    return net(lambda m, x: m.head(x + 0.1 * m.body(torch.ones_like(x[0]))), inner=6)


# A name, the model, and the shape of a batch.
MIXING: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch mean": (lambda: of_batch_mean(0.5), (4, 6)),
    "batch statistics": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, CLASSES)
        ),
        (4, 6),
    ),
    "sequence first": (sequence_first, (32, 32, 3)),
    "sequence of three": (sequence_first, (3, 3, 3)),  # as many as are checked
    "a little": (lambda: of_batch_mean(1e-5), (32, 6)),
    "a little of the images": (
        lambda: net(lambda m, x: m.head(m.body(x - 1e-5 * x.mean(dim=0)))),
        (32, 6),
    ),
    "one row": (one_row, (6, 6)),
}


@pytest.mark.parametrize("name", MIXING)
def test_models_that_mix_samples_are_detected(name: str) -> None:
    build, (count, *shape) = MIXING[name]
    model, (images, labels) = lively(build()), data(*shape, count=count)
    with pytest.raises(ValueError, match="does not suit the model"):
        gradient_norms(model, [(images, labels)], method="ghost")
    if name == "batch statistics" or name.startswith("a little"):
        return
    # A pass of one sample shows no mixing, so the next pass is checked too.
    for cut in (0, 1):
        parts = [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])]
        found = gradient_norms(model, parts)
        np.testing.assert_allclose(found, twin(model, images, labels), rtol=2e-4)


def test_mixing_is_detected_in_uint8_images_and_in_any_sample() -> None:
    """uint8 images have no gradient, and the model mixes all samples but the first."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = x.float() / 255
        return net.head(torch.cat((x[:1], x[1:] - 0.02 * x[1:].mean(dim=0))))

    images = torch.randint(256, (8, 6), dtype=torch.uint8)
    _, labels = data(6, count=8)
    with pytest.raises(ValueError, match="mixes samples"):
        gradient_norms(lively(Net(forward, head=nn.Linear(6, CLASSES))), [(images, labels)],
                       method="ghost")  # fmt: skip


def test_the_check_is_made_once() -> None:
    class Counted(nn.Sequential):
        """Counts the samples that it is run on."""

        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return super().forward(x)

    model, (images, labels) = Counted(nn.Linear(6, CLASSES)), data(6, count=40)
    batches = [(images[start : start + 8], labels[start : start + 8]) for start in range(0, 40, 8)]
    gradient_norms(model, batches, method="ghost")
    assert model.seen == 40 + 3 + 3


def branching() -> nn.Module:
    """A branch on a value, which torch.func cannot transform."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.scale * net.head(x)
        return y if float(y.sum().detach()) > 0 else 2 * y

    return Net(forward, head=nn.Linear(6, CLASSES), scale=nn.Parameter(torch.ones(())))


def test_auto_falls_back_to_one_sample_at_a_time() -> None:
    model, batch = lively(branching()), data(6, count=6)
    with pytest.raises(ValueError, match=r"torch\.func cannot transform"):
        gradient_norms(model, [batch], method="vmap")
    check(model, batch, "auto")


# The model is left unchanged, and the caller's autograd modes have no effect.


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(method: Any, fails: bool) -> None:
    model = lively(shared()).train()
    model.norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = copy.deepcopy(model.state_dict())
    images, labels = data(3, 7, 6)
    if fails:
        labels = torch.tensor([0, 1, 2, CLASSES])
        with pytest.raises(ValueError, match="labels"):
            gradient_norms(model, [(images, labels)], method=method)
    else:
        gradient_norms(model, [(images, labels)], method=method)
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {name: name != "norm" for name in modes}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    others = [value.grad for name, value in model.named_parameters() if name != "head.weight"]
    assert others == [None] * len(others)
    assert all(value.requires_grad for value in model.parameters())
    hooks = [{**m._forward_hooks, **m._forward_pre_hooks} for m in model.modules()]
    assert hooks == [{}] * len(hooks)


@pytest.mark.parametrize("method", METHODS)
def test_the_callers_autograd_modes_have_no_effect(method: Any) -> None:
    model, (images, labels) = lively(shared()), data(3, 7, 6)
    expected = twin(model, images, labels)
    with torch.inference_mode():
        found = gradient_norms(model, [(images.clone(), labels.clone())], method=method)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_norms(model, [(images, labels)], method=method)
    np.testing.assert_allclose(found, expected, rtol=2e-4)


# Bad input.

LINEAR = nn.Linear(6, CLASSES)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("label", [-100, -1, CLASSES])
def test_labels_out_of_range_are_rejected(label: int, method: Any) -> None:
    images, labels = data(6)
    labels[2] = label
    with pytest.raises(ValueError, match=f"from 0 to {CLASSES - 1}.*{label}"):
        gradient_norms(LINEAR, [(images, labels)], method=method)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_gradients_that_are_not_finite_name_the_sample(method: Any) -> None:
    images, labels = data(6, count=8)
    images[5, 0] = float("nan")
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    with pytest.raises(ValueError, match="gradient of sample 5 is not finite"):
        gradient_norms(LINEAR, batches, method=method)


@pytest.mark.parametrize(
    ("model", "batches", "method", "message"),
    [
        (LINEAR, [], "auto", "holds no sample"),
        (LINEAR, [(torch.ones(0, 6), torch.ones(0).long())], "auto", "holds no sample"),
        (nn.Linear(6, 5).requires_grad_(False), [data(6)], "auto", "trainable parameters"),
        (LINEAR, [(torch.ones(2, 6), torch.zeros(2))], "auto", "integer label per image"),
        (LINEAR, [(torch.ones(2, 6), torch.ones(3).long())], "auto", "3 of torch.int64"),
        (LINEAR, [(torch.ones(2, 3, 6), torch.ones(2).long())], "auto", "must return logits"),
        (nn.LSTM(6, 5), [(torch.ones(2, 6), torch.ones(2).long())], "auto", "tuple"),
        (LINEAR, [data(6)], "fast", "`method` must be one of"),
    ],
)
def test_wrong_inputs_are_rejected(
    model: nn.Module, batches: Any, method: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_norms(model, batches, method=method)
