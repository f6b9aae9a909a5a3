"""Models: heads, features, encoders, architectures."""

import copy
import sys
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from dp4tl_ffcv import build_model
from dp4tl_ffcv.scoring.surrogate.models import BlurPoolConv, NoHead
from dp4tl_ffcv.utils import Classifier, replace_head
from tests.support import models as support
from tests.support.models import Blurred, assert_same_state, images

ARCHS = {"resnet8_w16": 64, "resnet8_w32": 128, "resnet18": 512, "mobilenet_v3_small": 1024}


def make(arch: str) -> Classifier:
    if arch == "vit":
        return Classifier(VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=5), arch, 5)
    return support.make(arch)


@pytest.mark.parametrize("arch", [*ARCHS, "vit"])
def test_models_encoders_and_new_heads_share_the_features(arch: str) -> None:
    model = make(arch).eval()
    model.trained_on = "0123abcd"
    before = copy.deepcopy(model.state_dict())
    body = {name for name in before if not name.startswith(f"network.{model.head_name}.")}
    assert len(before) == len(body) + 2  # weight and bias
    encoder = replace_head(model, None).eval()
    new = replace_head(encoder, 9).eval()
    with torch.inference_mode():
        logits, features = model.features(images())
        assert torch.equal(logits, model(images()))
        assert torch.equal(model.head(features), logits)
        assert (logits.shape, features.shape) == ((3, 5), (3, ARCHS.get(arch, 32)))
        assert encoder.features(images())[0] is None
        for other in (encoder, new):
            assert torch.equal(other.features(images())[1], features)
        assert torch.equal(encoder(images()), features)
        assert new(images()).shape == (3, 9)
    assert not model.head._forward_pre_hooks
    assert isinstance(encoder.head, NoHead)
    assert encoder.head.in_features == features.shape[1]
    assert encoder.head_name == new.head_name == model.head_name
    assert set(encoder.state_dict()) == body
    assert (encoder.num_classes, new.num_classes, new.head.out_features) == (None, 9, 9)
    assert (new.arch, new.trained_on) == (arch, "0123abcd")
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert_same_state(model.state_dict(), before)


def test_names_belong_to_the_outputs_of_one_head() -> None:
    model = make("resnet8_w16")
    assert model.class_names == ()
    model.class_names = list("abcde")
    assert copy.deepcopy(model).class_names == model.class_names == tuple("abcde")
    assert replace_head(model, 5).class_names == replace_head(model, None).class_names == ()
    for other, outputs in ((model, 5), (replace_head(model, None), 0)):
        with pytest.raises(ValueError, match=f"name each of the {outputs} outputs; got 4 names"):
            other.class_names = list("abcd")
    model.class_names = ()
    assert model.class_names == ()


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_inceptions_have_one_output_in_training_too(arch: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model(arch, 5).train()
    logits, features = model.features(images(2, side=96))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 5)
    assert features.shape == (2, model.head.in_features)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())  # DDP requires it


def test_a_failing_pass_leaves_no_hook() -> None:
    model = make("resnet8_w16")
    with pytest.raises(RuntimeError, match=r"size of tensor"):
        model.features(torch.zeros(2, 5, 32, 32))
    assert not model.head._forward_pre_hooks


def test_pixels_are_normalised_as_for_imagenet() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, normalised: torch.Tensor) -> torch.Tensor:
            return normalised.mean((2, 3))

    pixels = torch.tensor([0, 255, 100], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    found = Classifier(Middle(), "middle", 3)(pixels)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(found, (torch.tensor([0.0, 1.0, 100 / 255]) - mean) / std)


def test_a_network_without_a_linear_head_is_rejected_at_once() -> None:
    with pytest.raises(ValueError, match=r"^SqueezeNet does not end in an nn\.Linear"):
        build_model("squeezenet1_1", 5)


@pytest.mark.parametrize("arch", ["resnet19", "", "fcos_resnet50_fpn", "raft_small"])
def test_an_unknown_architecture_is_rejected(arch: str) -> None:
    message = rf"^there is no architecture '{arch}'.*\. Choose one of resnet8_w16, resnet8_w32,"
    with pytest.raises(ValueError, match=message):
        build_model(arch, 5)


def test_a_normalisation_must_have_three_channels() -> None:
    with pytest.raises(ValueError, match=r"^`std` must have three values, .* got \(1\.0,\)"):
        Classifier(nn.Linear(3, 2), "linear", 2, std=(1,))


# Encoders.


def test_a_network_that_is_its_head_becomes_an_encoder() -> None:
    encoder = replace_head(Classifier(nn.Linear(4, 2), "linear", 2), None)
    assert isinstance(encoder.network, NoHead)
    assert replace_head(encoder, 7).head.weight.shape == (7, 4)  # type: ignore[union-attr]


def test_a_blurred_convolution_is_a_blur_and_a_convolution() -> None:
    torch.manual_seed(0)
    conv, values = nn.Conv2d(5, 3, 3, stride=2, padding=1), torch.randn(2, 5, 9, 8)
    blurred, expected = BlurPoolConv(conv), Blurred(conv)
    assert_same_state(blurred.state_dict(), expected.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(blurred(values), expected(values))


# timm.


@pytest.mark.parametrize(
    ("arch", "mean"),
    [("timm:vit_tiny_patch16_224", 0.5), ("convnext_atto", 0.485)],
)
def test_features_of_a_timm_model_equal_timms(arch: str, mean: float) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = build_model(arch, 5).eval()
    assert model.arch == f"timm:{arch.removeprefix('timm:')}"
    assert model.channels[0][0] == mean
    theirs = timm.create_model(arch.removeprefix("timm:"), num_classes=5).eval()
    theirs.load_state_dict(model.network.state_dict())
    pixels = images(1, 224)
    with torch.inference_mode():
        logits, features = model.features(pixels)
        channels = [torch.tensor(values).view(1, 3, 1, 1) for values in model.channels]
        normalised = (pixels / 255 - channels[0]) / channels[1]
        pooled = theirs.forward_head(theirs.forward_features(normalised), pre_logits=True)
        torch.testing.assert_close(features, pooled, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(logits, theirs(normalised), rtol=1e-3, atol=1e-4)
        encoder = replace_head(model, None).eval()
        assert torch.equal(encoder(pixels), features)
    assert encoder.channels == model.channels


@pytest.mark.parametrize("arch", ["timm:resnet19", "resnet18.no_such_tag", "hf_hub:timm/resnet18"])
def test_a_model_that_timm_lacks_is_rejected(arch: str) -> None:
    pytest.importorskip("timm")
    name = arch.removeprefix("timm:")
    with pytest.raises(ValueError, match=rf"^there is no architecture '{name}'"):
        build_model(arch, 5)


def test_a_model_of_timm_with_two_heads_is_rejected() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"does not end in one nn\.Linear"):
        build_model("timm:deit_tiny_distilled_patch16_224", 5)


@pytest.mark.parametrize("arch", ["timm:resnet18", "convnext_atto"])
def test_timms_models_are_rejected_if_timm_is_not_installed(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    message = (
        r" without timm, which .*\. Choose one of .*list_models\(\), or run `pip install timm`"
    )
    with pytest.raises(ValueError, match=message):
        build_model(arch, 5)
    assert build_model("resnet18", 5).num_classes == 5
