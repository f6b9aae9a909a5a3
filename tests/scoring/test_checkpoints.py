"""Checkpoints of this project: equal weights, damage, unpickling, errors."""

import pickle
import resource
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp4tl_ffcv import CheckpointError, load_checkpoint, save_checkpoint
from dp4tl_ffcv.utils import Classifier, replace_head
from tests.support.models import assert_same_state, images, make, outputs
from tests.support.traps import Trap

UNREADABLE = r"^cannot load '.*': it is damaged, not a checkpoint, or holds objects"
NO_STATE = r"^cannot load '.*': it is not a state dict"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(path, make())
    return path


@pytest.mark.parametrize("arch", ["resnet8_w16", "mobilenet_v3_small", "timm:convnext_atto"])
def test_a_checkpoint_restores_the_model(arch: str, tmp_path: Path) -> None:
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    model = make(arch)
    model.trained_on, model.class_names = "0123abcd", list("vwxyz")
    with torch.no_grad():
        model.train()(images(8))  # changes the statistics of BatchNorm
    path = tmp_path / "deep" / "last.pt"
    save_checkpoint(path, model)
    for expected in (None, arch, arch.removeprefix("timm:")):
        loaded = load_checkpoint(path, arch=expected)
        assert (loaded.arch, loaded.num_classes) == (arch, 5)
        assert loaded.trained_on == replace_head(loaded, 3).trained_on == "0123abcd"
        assert loaded.class_names == tuple("vwxyz")
        assert_same_state(loaded.state_dict(), model.state_dict())
        assert torch.equal(outputs(loaded), outputs(model))
    encoder = load_checkpoint(path, headless=True)
    assert (encoder.num_classes, encoder.trained_on) == (None, "0123abcd")
    assert encoder.class_names == ()
    with torch.inference_mode():
        assert torch.equal(outputs(encoder), model.eval().features(images())[1])


@pytest.mark.parametrize("num_classes", [None, 5])
def test_an_encoder_and_a_normalisation_are_restored(
    num_classes: int | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    mean, std = tuple(rng.uniform(0, 1, 3)), tuple(rng.uniform(0.1, 1, 3))
    model = Classifier(make().network, "resnet8_w16", num_classes, mean, std)
    save_checkpoint(tmp_path / "last.pt", model)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded.num_classes == num_classes
    assert torch.equal(outputs(loaded), outputs(model))
    assert replace_head(loaded, 5).channels == model.channels


def test_a_checkpoint_of_an_earlier_version_is_read(checkpoint: Path, tmp_path: Path) -> None:
    entries = torch.load(checkpoint, weights_only=True)
    del entries["class_names"], entries["trained_on"]
    torch.save(entries, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt")
    assert (loaded.num_classes, loaded.class_names, loaded.trained_on) == (5, (), None)


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(checkpoint.read_bytes())
    model = make()

    class Local:
        """A class that cannot be pickled."""

    model.num_classes = Local()  # type: ignore[assignment]  # wrong on purpose
    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        save_checkpoint(path, model)
    assert path.read_bytes() == checkpoint.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path, before = tmp_path / "a.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_checkpoint(path, make())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


# Errors.


def test_arguments_must_agree_with_the_checkpoint(checkpoint: Path) -> None:
    facts: dict[str, Any] = {
        "arch": "resnet8_w16", "num_classes": 5, "mean": (0.485, 0.456, 0.406),
        "std": np.array([0.229, 0.224, 0.225]),
    }  # fmt: skip
    assert load_checkpoint(checkpoint, **facts).num_classes == 5
    others = {"arch": "vgg11", "num_classes": 6, "mean": (0.5,) * 3, "std": np.ones(3)}
    for name, value in others.items():
        message = rf"^cannot load '.*last\.pt': its {name} is .*, not .*\. Leave `{name}` out"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(checkpoint, **facts | {name: value})


WEIGHTS = make().network.state_dict()
FIRST = next(iter(WEIGHTS))


@pytest.mark.parametrize(
    "entry",
    [
        {"arch": "resnet8_w32"},
        {"arch": "no such network"},
        {"arch": 3},
        {"num_classes": 6},
        {"num_classes": "many"},
        {"network": {}},
        {"network": 3},
        {"network": {name: value for name, value in WEIGHTS.items() if name != FIRST}},
        {"network": WEIGHTS | {"more": torch.ones(1)}},
        {"network": WEIGHTS | {FIRST: torch.ones(3)}},
        {"mean": None},
        {"std": [1.0]},
        {"trained_on": 3},
        {"class_names": list("abcd")},
        {"class_names": "abcde"},
        {"class_names": ["a", "b", "c", "d", 5]},
        {"class_names": None},
    ],
)
@pytest.mark.parametrize("headless", [False, True])
def test_an_altered_checkpoint_is_rejected(
    headless: bool, entry: Any, checkpoint: Path, tmp_path: Path
) -> None:
    if headless and "num_classes" in entry and isinstance(entry["num_classes"], int):
        return  # the head is not read
    torch.save(torch.load(checkpoint, weights_only=True) | entry, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"^cannot load '.*a\.pt': it"):
        load_checkpoint(tmp_path / "a.pt", headless=headless)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, NO_STATE),
        ({"state_dict": {}}, NO_STATE),
        ({"a": 1}, NO_STATE),
        ({"state_dict": [1]}, NO_STATE),
        ([1, 2], UNREADABLE),
        (torch.ones(3), UNREADABLE),
        (7, UNREADABLE),
        ({"model": WEIGHTS, "args": Namespace(lr=0.1)}, UNREADABLE),
    ],
)
def test_a_file_without_a_state_dict_is_rejected(values: Any, message: str, tmp_path: Path) -> None:
    torch.save(values, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


def test_a_checkpoint_without_an_entry_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    whole = torch.load(checkpoint, weights_only=True)
    for name in ("arch", "num_classes", "mean", "std", "network"):
        torch.save({key: whole[key] for key in whole if key != name}, tmp_path / "a.pt")
        with pytest.raises(
            CheckpointError, match=rf"its entry '{name}' is missing\. It is damaged"
        ):
            load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")


@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(1000), b"PK\x03\x04", 0.1, 0.5, 0.9, 0.999]
)
def test_a_damaged_file_is_rejected(
    content: bytes | float, checkpoint: Path, tmp_path: Path
) -> None:
    """A float keeps this fraction of a checkpoint."""
    if isinstance(content, float):
        whole = checkpoint.read_bytes()
        content = whole[: int(content * len(whole))]
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=UNREADABLE):
        load_checkpoint(tmp_path / "a.pt")


def test_a_flipped_bit_is_detected_or_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    whole, expected = checkpoint.read_bytes(), load_checkpoint(checkpoint).state_dict()
    rejected = 0
    for position in np.random.default_rng(0).integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            loaded = load_checkpoint(tmp_path / "a.pt")
        except CheckpointError:
            rejected += 1
        else:
            assert_same_state(loaded.state_dict(), expected)
    assert rejected > 90


def test_a_member_that_is_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """torch would leave the memory of the tensor as it happens to be."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, make())
    whole = bytearray(path.read_bytes())
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"/data/0"))
    whole[entry + 38] = 0x10
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="a member is marked as a folder"):
        load_checkpoint(path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    network = make().network.state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": network}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
    assert_same_state(loaded.network.state_dict(), network)


def test_an_error_says_what_a_file_holds(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "hyper_parameters": Namespace(lr=0.1)}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError,
        match=rf"{UNREADABLE}[a-z ]* \(the pickle names argparse\.Namespace, at byte \d+\)\. Save",
    ):
        load_checkpoint(tmp_path / "a.pt", arch="resnet8_w16")
    model = make()
    save_checkpoint(tmp_path / "a.pt", model)
    whole = bytearray((tmp_path / "a.pt").read_bytes())
    whole[whole.index(next(model.network.parameters()).detach().numpy().tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"a member has another checksum\)\. Save"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_checkpoint_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_checkpoint(tmp_path / "none.pt")


def in_an_array(trap: Trap) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = trap
    return {"state_dict": WEIGHTS, "best_acc": array}


TRAPPED: dict[str, Callable[[Trap], Any]] = {
    "whole": lambda trap: trap,
    "entry": lambda trap: {
        "arch": "resnet8_w16", "num_classes": 5, "mean": [0] * 3, "std": [1] * 3,
        "network": WEIGHTS, "extra": trap,
    },
    "next to a state dict": lambda trap: {"state_dict": WEIGHTS, "args": trap},
    "key": lambda trap: {trap: 1},
    "array": in_an_array,
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "old", "plain pickle"])
@pytest.mark.parametrize("place", TRAPPED)
def test_code_in_a_checkpoint_is_not_run(place: str, form: str, tmp_path: Path) -> None:
    path, sprung = tmp_path / "a.pt", tmp_path / "sprung"
    content = TRAPPED[place](Trap(sprung))
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=UNREADABLE):
        load_checkpoint(path, arch="resnet8_w16")
    assert not sprung.exists()
    if form != "plain pickle":
        torch.load(path, weights_only=False)
        assert sprung.exists()
