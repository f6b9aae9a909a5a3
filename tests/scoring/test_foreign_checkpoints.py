"""Checkpoints of other programs, built as these programs build them."""

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import densenet121, resnet18, resnet50

from dp4tl_ffcv import CheckpointError, load_checkpoint, save_checkpoint
from dp4tl_ffcv.utils import Classifier, replace_head
from tests.support.models import Blurred, assert_same_state, images, make

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
State = dict[str, Any]


def normalised(mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    mean, std = (torch.tensor(values).float().view(1, 3, 1, 1) for values in (mean, std))
    return (images(side=64) / 255 - mean) / std


def trained(network: nn.Module) -> nn.Module:
    """Change the weights and BatchNorm statistics of a new network."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
        network.train()(normalised())
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return trained(resnet18(num_classes=7))


def assert_gives(model: Classifier, expected: nn.Module, values: torch.Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(
            model.eval()(images(side=64)), expected(values), rtol=1e-4, atol=1e-4
        )


def pooled(network: nn.Module) -> nn.Module:
    """Return the network without its head."""
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten()).eval()


def data_parallel(network: nn.Module) -> State:
    return nn.DataParallel(network).state_dict()  # with the prefix of DistributedDataParallel


def dp4tl(network: nn.Module) -> State:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
    return {
        "state_dicts": {
            "network": data_parallel(network),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        },
        "current_epoch": 16,
        "best_acc": np.float64(0.5) * np.float32(1.5),
        "relative_time": np.float32(7.5),
        "history": [np.arange(3.0), np.arange(3), np.bool_(True), np.array([1], np.float16)],
    }


def lightning(network: nn.Module) -> State:
    module = nn.Module()
    module.model = network
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": module.state_dict(),
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(1)}},
    }


FORMATS: dict[str, Callable[[nn.Module], State]] = {
    "torchvision": lambda network: network.state_dict(),
    "ffcv-imagenet": data_parallel,
    "compiled": lambda network: torch.compile(network).state_dict(),
    "DP4TL": dp4tl,
    "Lightning": lightning,
    "timm": lambda network: {"epoch": 1, "arch": "resnet18", "state_dict": network.state_dict()},
    "DeiT": lambda network: {"model": network.state_dict()},
    "Classifier": lambda network: Classifier(network, "resnet18", 7).state_dict(),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("program", FORMATS)
def test_weights_of_another_program_give_its_outputs(
    program: str, zipped: bool, network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    torch.save(FORMATS[program](network), path, _use_new_zipfile_serialization=zipped)
    model = load_checkpoint(path, arch="resnet18", num_classes=7)
    assert (model.arch, model.num_classes, model.trained_on) == ("resnet18", 7, None)
    assert_gives(model, network, normalised())


def test_safetensors(network: nn.Module, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(network.state_dict(), path)
    model = load_checkpoint(path, arch="resnet18")
    assert model.num_classes == 7
    assert_gives(model, network, normalised())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_checkpoint(path, arch="resnet18")


def test_a_missing_safetensors_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"safetensors, which is not .* `pip install safetensors`"):
        load_checkpoint(tmp_path / "a.safetensors", arch="resnet18")


def test_numbers_pickled_by_numpy_1(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    torch.save(dp4tl(network), path, _use_new_zipfile_serialization=False)
    now, before = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    content = path.read_bytes()
    assert now in content
    path.write_bytes(content.replace(now, before))
    assert_gives(load_checkpoint(path, arch="resnet18"), network, normalised())


@pytest.mark.parametrize(
    "prefixes",
    [
        order
        for count in range(4)
        for order in itertools.permutations(("module.", "_orig_mod.", "model."), count)
    ],
    ids="".join,
)
def test_prefixes_in_any_order(prefixes: tuple[str, ...], tmp_path: Path) -> None:
    expected = make().network.state_dict()
    state = {"".join(prefixes) + name: value for name, value in expected.items()}
    torch.save(state, tmp_path / "a.pt")
    found = load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16").network.state_dict()
    assert_same_state(found, expected)


@pytest.mark.parametrize(
    ("prefix", "more", "named"),
    [
        ("module.", "module.layer1.module.extra", "unknown keys: layer1.module.extra"),
        ("module.", "module.layer1._orig_mod.extra", "unknown keys: layer1._orig_mod.extra"),
        ("", "module.extra", "unknown keys: module.extra"),
        ("", "0._orig_mod.weight", "keys for the same weight: 0.weight, 0._orig_mod.weight"),
    ],
)
def test_further_keys_under_the_prefix_are_rejected(
    prefix: str, more: str, named: str, tmp_path: Path
) -> None:
    state = make().network.state_dict()
    state = {prefix + name: value for name, value in state.items()} | {more: torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"{re.escape(named)}\. "):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


def test_old_key_names_of_densenets(tmp_path: Path) -> None:
    expected = densenet121(num_classes=3).state_dict()
    state = {}
    for name, value in expected.items():
        head, _, tail = name.rpartition(".")
        block = head.rpartition(".")[2]
        if "denselayer" in name and block[:-1] in ("norm", "conv"):
            name = f"{head[:-1]}.{head[-1]}.{tail}"
        if not name.endswith("num_batches_tracked"):
            state[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "a.pt")
    found = load_checkpoint(tmp_path / "a.pt", arch="densenet121").network.state_dict()
    assert_same_state(found, expected)


@pytest.mark.parametrize("part", ["mean", "std"])
def test_the_caller_gives_the_normalisation(part: str, network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "a.pt")
    channels: Any = {part: np.array([0.5, 0.4, 0.3])}
    model = load_checkpoint(tmp_path / "a.pt", arch="resnet18", **channels)
    assert_gives(model, network, normalised(**channels))


def test_weights_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = trained(timm.create_model("regnetx_002", num_classes=4))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "a.pt")
    for arch in ("regnetx_002", "timm:regnetx_002"):
        model = load_checkpoint(tmp_path / "a.pt", arch=arch)
        assert (model.arch, model.num_classes) == ("timm:regnetx_002", 4)
        assert_gives(model, theirs, normalised())


# Blurred convolutions.


def blur_strided(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, Blurred(child))
        else:
            blur_strided(child)
    return module


def test_blurred_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = trained(blur_strided(resnet18(num_classes=7)))
    torch.save(data_parallel(network), tmp_path / "final_weights.pt")
    model = load_checkpoint(tmp_path / "final_weights.pt", arch="resnet18")
    assert sum(name.endswith("blur_filter") for name in model.network.state_dict()) == 6
    assert_gives(model, network, normalised())
    save_checkpoint(tmp_path / "own.pt", model)
    assert_gives(load_checkpoint(tmp_path / "own.pt"), network, normalised())


# Encoders.


def moco(version: int) -> tuple[State, nn.Module]:
    """Build MoCo's checkpoint of a ResNet-18, and the query encoder without its head."""
    torch.manual_seed(0)
    encoders = [trained(resnet18(num_classes=128)) for _ in range(2)]
    if version == 3:
        for encoder in encoders:
            encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)  # type: ignore[arg-type]  # a layer
    with torch.no_grad():
        for parameter in encoders[1].parameters():
            parameter += 1
    whole = nn.Module()
    names = ("base_encoder", "momentum_encoder") if version == 3 else ("encoder_q", "encoder_k")
    for name, encoder in zip(names, encoders, strict=True):
        setattr(whole, name, encoder)
    if version == 3:
        whole.predictor = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64))
    else:
        whole.register_buffer("queue", torch.randn(128, 32))
        whole.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.03, momentum=0.9)
    state = {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": data_parallel(whole),
        "optimizer": optimizer.state_dict(),
    }
    return state, pooled(encoders[0])


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("version", [1, 3])
def test_mocos_query_encoder(version: int, tmp_path: Path) -> None:
    state, encoder = moco(version)
    torch.save(state, tmp_path / "checkpoint_0199.pth.tar", _use_new_zipfile_serialization=False)
    model = load_checkpoint(tmp_path / "checkpoint_0199.pth.tar", arch="resnet18")
    assert model.num_classes is None
    assert_gives(model, encoder, normalised())
    assert model.features(images(side=64))[0] is None
    assert replace_head(model, 5).num_classes == 5
    with pytest.raises(CheckpointError, match="its num_classes is None, not 1000"):
        load_checkpoint(tmp_path / "checkpoint_0199.pth.tar", arch="resnet18", num_classes=1000)


def without(state: State, prefix: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def test_weights_without_a_head_are_an_encoder(network: nn.Module, tmp_path: Path) -> None:
    whole = network.state_dict()
    body = without(whole, "fc.")
    projected = body | {"fc.0.weight": torch.ones(9, 512), "fc.2.bias": torch.ones(3)}
    for state in (whole, body, projected):
        torch.save(state, tmp_path / "a.pt")
        model = load_checkpoint(tmp_path / "a.pt", arch="resnet18", headless=state is whole)
        assert model.num_classes is None
        assert_gives(model, pooled(network), normalised())


# Errors.


def test_the_architecture_must_be_named(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"cannot load '.*a\.pt': .*Pass `arch`"):
        load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="there is no architecture 'resnet19'"):
        load_checkpoint(tmp_path / "a.pt", arch="resnet19")


MISFITS: list[tuple[Callable[[State], State], str]] = [
    (
        lambda _: resnet50(num_classes=7).state_dict(),
        r"unknown keys: layer1\.0\.conv3\.weight, .* \[...\]\. wrong shapes: layer",
    ),
    (lambda state: {"a": torch.ones(1)} | state, r"unknown keys: a\."),
    (lambda state: without(state, "conv1.weight"), r"missing keys: conv1\.weight"),
    (lambda state: without(state, "fc.weight"), r"with 7 classes; missing keys: fc\.weight"),
    (
        lambda state: state | {"bn1.weight": torch.ones(3)},
        r"shapes: bn1\.weight \(3,\) instead of \(64,\)\. Pass",
    ),
    (
        lambda state: state | {"fc.weight": torch.tensor(3.0)},
        r"wrong shapes: fc\.weight \(\) instead",
    ),
    (
        lambda state: state | {"bn1.blur_filter": torch.ones(64, 1, 3, 3)},
        r"unknown keys: bn1\.blur_filter",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[State], State], message: str, network: nn.Module, tmp_path: Path
) -> None:
    torch.save(change(network.state_dict()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"^cannot load '.*a\.pt': its weights .*{message}"):
        load_checkpoint(tmp_path / "a.pt", arch="resnet18")
