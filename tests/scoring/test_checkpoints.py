"""Checkpoints of this project: the same bits come back, damage is noticed, code is not run."""

import copy
import pickle
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dp4tl_ffcv import CheckpointError, build_model, load_checkpoint, save_checkpoint
from dp4tl_ffcv.utils import Classifier, replace_head

NO_CHECKPOINT = r"^`path` must be a checkpoint of tensors and numbers alone; got .*state dict alone"
NO_STATE = r"^`path` must be a checkpoint of this project or hold a state dict, .*Save the state"


def make(arch: str, num_classes: int | None = 5) -> Classifier:
    torch.manual_seed(0)
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
    message = (
        r"^`path` must be a checkpoint of arch resnet18; got one of resnet8_w16, .*pass another"
    )
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
        with pytest.raises(
            CheckpointError, match=r"^`path` must (hold the weights of .*altered|be .*Save)"
        ):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["arch", "num_classes", "mean", "std", "network"])
@pytest.mark.parametrize("arch", [None, "resnet8_w16"])
def test_a_checkpoint_that_lacks_a_part_is_refused(
    name: str, arch: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    path = altered(checkpoint, tmp_path / "a.pt", **{name: ...})
    with pytest.raises(CheckpointError, match=NO_STATE):
        load_checkpoint(path, arch=arch)


@pytest.mark.parametrize("values", [{}, {"state_dict": {}}, {"state_dict": [1]}, {"a": 1}], ids=str)
def test_a_file_without_a_state_dict_is_refused(values: Any, tmp_path: Path) -> None:
    torch.save(values, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=NO_STATE):
        load_checkpoint(tmp_path / "a.pt", arch="resnet18")


@pytest.mark.parametrize("values", [[1, 2], torch.ones(3), 7], ids=str)
def test_a_file_of_something_else_is_refused(values: Any, tmp_path: Path) -> None:
    torch.save(values, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(tmp_path / "a.pt", arch="resnet18")


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


def trapped(place: str, checkpoint: Path, trap: Trap) -> Any:
    state = make("resnet8_w16").network.state_dict()
    if place == "part":
        return torch.load(checkpoint, weights_only=True) | {"extra": trap}
    if place == "array":
        trapped = np.empty(1, dtype=object)
        trapped[0] = trap
        return {"state_dict": state, "best_acc": trapped}
    return {"whole": trap, "beside": {"state_dict": state, "args": trap}, "key": {trap: 1}}[place]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["whole", "part", "beside", "key", "array"])
def test_code_in_a_checkpoint_is_not_run(
    place: str, zipped: bool, checkpoint: Path, tmp_path: Path
) -> None:
    path, sprung = tmp_path / "a.pt", tmp_path / "sprung"
    content = trapped(place, checkpoint, Trap(sprung))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(path, arch="resnet8_w16")
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    path, sprung = tmp_path / "a.pt", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    with pytest.raises(CheckpointError, match=NO_CHECKPOINT):
        load_checkpoint(path)
    assert not sprung.exists()


def test_objects_beside_a_state_dict_are_not_unpickled(tmp_path: Path) -> None:
    state = make("resnet8_w16").network.state_dict()
    torch.save({"model": state, "args": Namespace(lr=0.1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds other objects.*save its state dict alone"):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


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


@pytest.mark.parametrize("num_classes", [5, None])
def test_a_checkpoint_says_which_beton_the_weights_come_from(
    num_classes: int | None, tmp_path: Path
) -> None:
    model = make("resnet8_w16", num_classes)
    model.trained_on = "0123abcd"
    save_checkpoint(tmp_path / "model.pt", model)
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.trained_on == replace_head(loaded, 3).trained_on == "0123abcd"
    assert load_checkpoint(tmp_path / "model.pt", headless=True).trained_on == "0123abcd"


def test_an_encoder_comes_back(tmp_path: Path) -> None:
    model = make("resnet8_w16", None)
    save_checkpoint(tmp_path / "model.pt", model)
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.num_classes is None
    assert torch.equal(outputs(loaded), outputs(model))


def test_a_classifier_may_be_read_without_its_head(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, headless=True)
    assert loaded.num_classes is None
    with torch.inference_mode():
        expected = load_checkpoint(checkpoint).eval().features(images())[1]
    assert torch.equal(outputs(loaded), expected)


def test_other_facts_than_expected_are_refused(checkpoint: Path) -> None:
    facts: dict[str, Any] = {
        "arch": "resnet8_w16", "num_classes": 5, "mean": (0.485, 0.456, 0.406),
        "std": np.array([0.229, 0.224, 0.225]),
    }  # fmt: skip
    assert load_checkpoint(checkpoint, **facts).num_classes == 5
    others = {"arch": "vgg11", "num_classes": 6, "mean": (0.5,) * 3, "std": np.ones(3)}
    for name, value in others.items():
        message = rf"^`path` must be a checkpoint of {name} .*; got one of .*Leave `{name}` out"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(checkpoint, **facts | {name: value})


def test_a_checkpoint_of_timm_without_timm_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    model = make("convnext_atto")
    save_checkpoint(tmp_path / "a.pt", model)
    loaded = load_checkpoint(tmp_path / "a.pt", arch="convnext_atto")
    assert_same_state(loaded.state_dict(), model.state_dict())
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"pip install timm"):
        load_checkpoint(tmp_path / "a.pt")
