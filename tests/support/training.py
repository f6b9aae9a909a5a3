"""Small runs of the three training recipes, and what they leave."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dp4tl_ffcv import (
    BetonIndex,
    Selection,
    evaluation_loader,
    image_fields,
    load_checkpoint,
    write_beton,
)
from tests.conftest import Images
from train import finetune, pretrain, pretrain_moco

RECIPES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "pretrain": pretrain.pretrain,
    "finetune": finetune.finetune,
    "pretrain_moco": pretrain_moco.pretrain_moco,
}
# Quick on a CPU: 120 images make three steps an epoch, the 24 of the target eight.
SMALL: dict[str, Any] = {"arch": "resnet8_w16", "resolution": 32, "num_workers": 1}
PRETRAIN: dict[str, Any] = {**SMALL, "batch_size": 32, "epochs": 2, "lr": 0.1}
MOCO: dict[str, Any] = {
    **SMALL, "batch_size": 40, "norm_batch": 10, "queue": 80, "projection_size": 16,
    "key_momentum": 0.9, "epochs": 2,
}  # fmt: skip
# Four of the shared photos' ten classes, under labels of the target's own.
TARGET_CLASSES = (2, 3, 5, 7)

Configure = Callable[..., Any]


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(result: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights in the checkpoint of a result."""
    network: dict[str, Tensor] = torch.load(result["checkpoint"], weights_only=True)["network"]
    return network


def accuracy_of(
    checkpoint: str, beton: Path, indices: Any = None, outputs: dict[int, int] | None = None
) -> float:
    """Return the accuracy of a checkpoint. `outputs` are the model's outputs by label."""
    model = load_checkpoint(checkpoint).eval()
    options = {"batch_size": 40, "resolution": 32, "indices": indices, "num_workers": 1}
    ((images, labels),) = evaluation_loader(beton, **options)
    expected = torch.tensor([(outputs or {}).get(label, label) for label in labels.tolist()])
    with torch.inference_mode():
        return (model(images).argmax(1) == expected).float().mean().item()


@pytest.fixture(scope="session")
def three_classes(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selection of classes 1, 4 and 8."""
    path = tmp_path_factory.mktemp("selection") / "three.npz"
    Selection.of_classes(BetonIndex.open(photos.path), [1, 4, 8]).save(path)
    return path


@pytest.fixture(scope="session")
def pretrained(photos: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with ten classes."""
    run = tmp_path_factory.mktemp("pretrained")
    config = pretrain.Config(train=photos.path, run=run, **{**PRETRAIN, "epochs": 1})
    return Path(pretrain.pretrain(config)["checkpoint"])


@pytest.fixture(scope="session")
def target(
    photos: Images, other_photos: Images, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Train, val and test betons of a target with four classes."""
    folder = tmp_path_factory.mktemp("target")
    kept = np.flatnonzero(np.isin(photos.labels, TARGET_CLASSES))
    parts = {"train": (photos, kept[::2]), "val": (photos, kept[1::2])}
    parts["test"] = (other_photos, np.flatnonzero(np.isin(other_photos.labels, TARGET_CLASSES)))
    for name, (images, ids) in parts.items():
        samples = [(images.images[i], TARGET_CLASSES.index(images.labels[i]), int(i)) for i in ids]
        write_beton(folder / f"{name}.beton", samples, image_fields(), class_names=list("abcd"))
    return {name: folder / f"{name}.beton" for name in parts}


@pytest.fixture(scope="session")
def settings_of_recipe(
    photos: Images, other_photos: Images, target: dict[str, Path], pretrained: Path
) -> Configure:
    """Return the configuration of a small run: `settings_of_recipe(recipe, run, **changes)`."""

    def make(recipe: str, run: Path, **changes: Any) -> Any:
        if recipe == "pretrain":
            paths = {"train": photos.path, "val": other_photos.path}
            return pretrain.Config(run=run, **{**PRETRAIN, **paths, **changes})
        if recipe == "pretrain_moco":
            return pretrain_moco.Config(run=run, **{**MOCO, "train": photos.path, **changes})
        # Eight batches: more than a loader has buffers for.
        values = {**SMALL, **target, "checkpoint": pretrained, "epochs": 4, "batch_size": 3}
        if changes.get("mode") == "from_scratch":
            values["checkpoint"] = None
        return finetune.Config(run=run, **{**values, **changes})

    return make


@pytest.fixture
def configure(
    request: pytest.FixtureRequest, settings_of_recipe: Configure, tmp_path: Path
) -> Configure:
    """Return the configuration of a small run of the test module's RECIPE."""
    recipe = getattr(request.module, "RECIPE", "pretrain")
    return lambda **changes: settings_of_recipe(recipe, **{"run": tmp_path / "run", **changes})


@pytest.fixture
def taken() -> Iterator[list[dict[str, Any]]]:
    """The optimiser and its options in every step that is taken from here on."""
    found: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        options = {k: v for k, v in groups[0].items() if k != "params"}
        decays = [group["weight_decay"] for group in groups]
        found.append({"kind": type(optimizer).__name__, **options, "weight_decays": decays})

    handle = register_optimizer_step_pre_hook(note)
    yield found
    handle.remove()
