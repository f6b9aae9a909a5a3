"""Surrogates: heads and checkpoints."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from dp4tl_ffcv import (
    CheckpointError,
    Classifier,
    build_model,
    load_checkpoint,
    replace_head,
    save_checkpoint,
)

ARCHS = {"resnet8_w16": 64, "resnet8_w32": 128, "resnet18": 512, "mobilenet_v3_small": 1024}
NO_CHECKPOINT = r"^`path` must be a checkpoint written by this project; got .*train\.pretrain"


def make(arch: str, num_classes: int = 5) -> Classifier:
    torch.manual_seed(0)
    if arch == "vit":
        network = VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=num_classes)
        return Classifier(network, arch, num_classes)
    return build_model(arch, num_classes)


def images(count: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def outputs(model: Classifier) -> torch.Tensor:
    return model.eval()(images())


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def assert_same_state(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# Models.


@pytest.mark.parametrize("arch", [*ARCHS, "vit"])
def test_features_are_the_input_of_the_head(arch: str) -> None:
    model = make(arch).eval()
    with torch.inference_mode():
        logits, features = model.features(images())
        assert torch.equal(logits, model(images()))
        assert torch.equal(model.head(features), logits)
    assert logits.shape == (3, 5)
    assert features.shape == (3, ARCHS.get(arch, 32))
    assert not model.head._forward_pre_hooks


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


def test_a_network_without_a_linear_head_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^`network` must end in an nn\.Linear; got SqueezeNet"):
        build_model("squeezenet1_1", 5)


@pytest.mark.parametrize("arch", ["resnet19", "", "fcos_resnet50_fpn", "raft_small"])
def test_an_unknown_architecture_is_refused(arch: str) -> None:
    message = rf"^`arch` must be one of \['resnet8_w16', 'resnet8_w32'\].*got '{arch}'"
    with pytest.raises(ValueError, match=message):
        build_model(arch, 5)


@pytest.mark.parametrize("arch", ["resnet8_w16", "resnet18", "mobilenet_v3_small", "vit"])
def test_a_new_head_leaves_the_body_and_the_original_as_they_were(arch: str) -> None:
    model = make(arch)
    before = state_of(model)
    new = replace_head(model, 9)
    assert new.num_classes == new.head.out_features == 9
    assert new.arch == arch
    assert outputs(new).shape == (3, 9)
    head = {name for name in before if before[name].shape != new.state_dict()[name].shape}
    assert len(head) == 2  # weight and bias
    body = {name: value for name, value in new.state_dict().items() if name not in head}
    assert_same_state(body, {name: value for name, value in before.items() if name not in head})
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert_same_state(model.state_dict(), before)


def test_a_new_head_keeps_the_normalisation() -> None:
    model = Classifier(make("resnet8_w16").network, "resnet8_w16", 5, (0.1, 0.2, 0.3), (0.5,) * 3)
    new = replace_head(model, 2)
    assert torch.equal(new.mean, model.mean)
    assert torch.equal(new.std, model.std)


# Checkpoints.


@pytest.mark.parametrize("arch", ["resnet8_w16", "resnet18", "mobilenet_v3_small"])
def test_a_checkpoint_gives_the_same_bits(arch: str, tmp_path: Path) -> None:
    model = make(arch)
    with torch.no_grad():
        model.train()(images(8))  # so that BatchNorm's statistics are not those of a new network
    path = tmp_path / "deep" / "last.pt"
    save_checkpoint(path, model)
    for expected in (None, arch):
        loaded = load_checkpoint(path, arch=expected)
        assert (loaded.arch, loaded.num_classes) == (arch, 5)
        assert_same_state(loaded.state_dict(), model.state_dict())
        assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("seed", range(5))
def test_any_normalisation_comes_back_to_the_bit(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    mean, std = tuple(rng.uniform(0, 1, 3)), tuple(rng.uniform(0.1, 1, 3))
    model = Classifier(make("resnet8_w16").network, "resnet8_w16", 5, mean, std)
    save_checkpoint(tmp_path / "last.pt", model)
    loaded = replace_head(load_checkpoint(tmp_path / "last.pt"), 5)
    assert torch.equal(loaded.mean, model.mean)
    assert torch.equal(loaded.std, model.std)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(path, make("resnet8_w16"))
    return path


def altered(checkpoint: Path, path: Path, **changes: Any) -> Path:
    values = torch.load(checkpoint, weights_only=True) | changes
    torch.save({name: value for name, value in values.items() if value is not ...}, path)
    return path


def test_another_architecture_than_expected_is_refused(checkpoint: Path) -> None:
    message = r"^`path` must be a checkpoint of resnet18; got one of resnet8_w16, .*pass another"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint, arch="resnet18")


def test_weights_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)["network"]
    first = next(iter(weights))
    cases: list[dict[str, Any]] = [
        {"arch": "resnet18"},
        {"arch": "resnet8_w32"},
        {"arch": "no such network"},
        {"arch": 3},
        {"num_classes": 6},
        {"num_classes": "many"},
        {"network": {}},
        {"network": 3},
        {"network": {name: value for name, value in weights.items() if name != first}},
        {"network": weights | {"more": torch.ones(1)}},
        {"network": weights | {first: torch.ones(3)}},
        {"mean": None},
        {"std": [1.0]},
    ]
    for number, changes in enumerate(cases):
        path = altered(checkpoint, tmp_path / f"{number}.pt", **changes)
        with pytest.raises(CheckpointError, match=r"^`path` must hold the weights of .*altered"):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["arch", "num_classes", "mean", "std", "network"])
def test_a_checkpoint_that_lacks_a_part_is_refused(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = altered(checkpoint, tmp_path / "a.pt", **{name: ...})
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(path)


@pytest.mark.parametrize("values", [{"state_dict": {}}, [1, 2], torch.ones(3), 7], ids=str)
def test_another_programs_file_is_refused(values: Any, tmp_path: Path) -> None:
    torch.save(values, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(1000), b"PK\x03\x04"])
def test_a_file_that_torch_cannot_read_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(part: float, checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(tmp_path / "a.pt")


def test_a_flipped_bit_is_noticed_or_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    whole, expected = checkpoint.read_bytes(), load_checkpoint(checkpoint).state_dict()
    refused = 0
    for position in np.random.default_rng(0).integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            loaded = load_checkpoint(tmp_path / "a.pt")
        except CheckpointError:
            refused += 1
        else:
            assert_same_state(loaded.state_dict(), expected)
    assert refused > 90


def test_a_beton_is_no_checkpoint(photos: Any) -> None:
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(photos.path)


def test_a_missing_checkpoint_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_checkpoint(tmp_path / "none.pt")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["whole", "part", "plain pickle"])
def test_code_in_a_checkpoint_is_not_run(place: str, checkpoint: Path, tmp_path: Path) -> None:
    path, sprung = tmp_path / "a.pt", tmp_path / "sprung"
    if place == "whole":
        torch.save(Trap(sprung), path)
    elif place == "part":
        altered(checkpoint, path, extra=Trap(sprung))
    else:
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint.read_bytes())
    model = make("resnet8_w16")

    class Local:
        """A class that cannot be pickled."""

    model.num_classes = Local()  # type: ignore[assignment]  # wrong on purpose
    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        save_checkpoint(path, model)
    assert path.read_bytes() == checkpoint.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
