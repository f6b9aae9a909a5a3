"""The surrogate that `dp4tl prune` trains: its settings, and the command without `--surrogate`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex, Selection, pruning_cost
from dp4tl_ffcv.cli import main
from dp4tl_ffcv.pipeline.surrogate import surrogate_settings
from tests.support.images import picture, write_images


@pytest.mark.parametrize(
    ("size", "arch", "resolution"),
    [
        ((28, 40), "resnet8_w16", 16),
        ((32, 32), "resnet8_w16", 16),
        ((64, 64), "resnet8_w16", 32),
        ((400, 300), "resnet18", 80),
    ],
)
def test_the_network_and_the_crops_fit_the_images(
    size: tuple[int, int], arch: str, resolution: int, tmp_path: Path
) -> None:
    index = write_images(tmp_path / "a.beton", [np.zeros((*size, 3), dtype=np.uint8)] * 3)
    settings = surrogate_settings(index)
    assert (settings["arch"], settings["resolution"]) == (arch, resolution)
    assert settings["batch_size"] == 32


@pytest.mark.parametrize(("samples", "batch_size"), [(5600, 64), (20_000, 256), (10**6, 1024)])
def test_an_epoch_has_enough_steps(
    samples: int, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_images(tmp_path / "a.beton", [np.zeros((8, 8, 3), dtype=np.uint8)])
    monkeypatch.setattr(BetonIndex, "num_samples", samples)
    settings = surrogate_settings(index)
    assert settings["batch_size"] == batch_size
    assert settings["lr"] == pytest.approx(0.5 * (batch_size / 1024) ** 0.5, abs=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 4 classes and a target of 2 of them."""
    root = tmp_path_factory.mktemp("data")
    for name, count in (("source", 4), ("target", 2)):
        (root / name).mkdir()
        labels = np.arange(8 * count) % count
        images = [picture(32, 32, seed=label) for label in labels.tolist()]
        names = [f"shape {n}" for n in range(count)]
        write_images(root / name / "train.beton", images, labels, class_names=names)
    return root


def test_prune_without_a_surrogate_trains_one_and_continues(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["prune", str(data / "source"), "--target", str(data / "target"), "--out", str(out)]
    main([*command, "--keep-classes", "2", "--num-workers", "1", "--json"])
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert shown["retained_classes"] == 2
    config = json.loads((out / "surrogate" / "config.json").read_text())
    assert {name: config[name] for name in ("arch", "resolution", "flip", "epochs")} == {
        "arch": "resnet8_w16", "resolution": 16, "flip": False, "epochs": 16,
    }  # fmt: skip
    header = json.loads((out / "features" / "target" / "header.json").read_text())
    assert header["provenance"]["resolution"] == 16
    before = (out / "surrogate" / "result.json").read_bytes()
    main([*command, "--keep-classes", "3", "--num-workers", "1", "--overwrite"])
    assert (out / "surrogate" / "result.json").read_bytes() == before
    assert len(Selection.load(out / "selection.npz").classes) == 3


def test_arguments_are_checked_before_a_surrogate_is_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", str(data / "source"), "--target", str(data / "target"), "--out"]
    for options, words in (
        ([], "give exactly one of"),
        (["--keep", "0.5", "--method", "forgetting"], "forgetting needs dynamics"),
        (["--keep", "0.5", "--arch", "resnet50"], "--arch describes the checkpoint of --surrogate"),
    ):
        with pytest.raises(SystemExit):
            main([*command, str(tmp_path / "out"), *options])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_batches_are_shared_among_processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    index = BetonIndex.open(data / "source" / "train.beton")
    assert surrogate_settings(index)["batch_size"] == 30


def test_the_cost_includes_the_training(data: Path) -> None:
    cost = pruning_cost(data / "source", data / "target", num_workers=1)
    assert (cost.images, cost.trained_images) == (16, 16 * 32)
    assert cost.seconds == pytest.approx((16 + 3 * 16 * 32) / cost.images_per_second)
