"""Results equal those of commit cdb1725: file bytes, scores, selections, orders, pixels, weights.

`golden/inputs.npz` holds JPEGs, labels, logits and features; `golden.json` and `golden.npz` hold
what that commit made of them. Integers and bytes must be equal. Trained weights are compared by
their sums and first values, with a tolerance for processors that round differently.

Adversarial and contrastive pretraining draw random numbers in each step. Their weights are those of
the commit that seeds every step instead of every epoch, so that runs can resume in mid-epoch.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dp4tl_ffcv import (
    BetonIndex,
    Scores,
    Selection,
    class_means,
    combine_scores,
    compact,
    evaluation_loader,
    feature_mapping,
    image_fields,
    label_mapping,
    select,
    training_loader,
    write_beton,
)
from dp4tl_ffcv.loading.orders import quasi_random_order, random_order, sequential_order
from dp4tl_ffcv.scoring import (
    coverage_centric,
    el2n,
    moderate,
    random_scores,
    soft_label_mapping,
)
from tests.conftest import CLASS_NAMES
from train import finetune, pretrain, pretrain_moco

FOLDER = Path(__file__).parent / "golden"
DIGESTS = json.loads((FOLDER / "golden.json").read_text())
GOLDEN = dict(np.load(FOLDER / "golden.npz"))
INPUTS = dict(np.load(FOLDER / "inputs.npz"))
RECIPE = {"arch": "resnet8_w16", "resolution": 32, "num_workers": 1}
SMALL = {**RECIPE, "batch_size": 16, "epochs": 2, "lr": 0.1}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, paths = tmp_path_factory.mktemp("golden"), {}
    for name in ("source", "target", "val", "test"):
        ends = np.cumsum(INPUTS[f"{name}/sizes"])
        jpegs = np.split(INPUTS[f"{name}/jpegs"], ends[:-1])
        samples = [
            (jpeg.tobytes(), int(label), number)
            for number, (jpeg, label) in enumerate(
                zip(jpegs, INPUTS[f"{name}/labels"], strict=True)
            )
        ]
        paths[name] = folder / f"{name}.beton"
        write_beton(
            paths[name],
            samples,
            image_fields(),
            class_names=CLASS_NAMES,
            page_size=1 << 21,
            seed=None,
        )
    return paths


@pytest.fixture(scope="module")
def index(betons: dict[str, Path]) -> BetonIndex:
    return BetonIndex.open(betons["source"])


@pytest.fixture(scope="module")
def scores(index: BetonIndex) -> dict[str, Scores]:
    labels, logits = index.labels(), INPUTS["logits"]
    means = class_means(INPUTS["source_features"], labels, 10)
    errors = el2n(INPUTS["source_logits"], labels)
    return {
        "label_mapping": label_mapping(logits),
        "soft_label_mapping": soft_label_mapping(logits),
        "feature_mapping": feature_mapping(INPUTS["features"], means),
        "el2n": errors,
        "moderate": moderate(INPUTS["source_features"], labels, 10),
        "coverage_centric": coverage_centric(errors, strata=5, cutoff=0.1, seed=1),
        "random": random_scores(10, seed=3),
    }


@pytest.fixture(scope="module")
def lm_40(scores: dict[str, Scores], index: BetonIndex) -> Selection:
    return select(scores["label_mapping"], index, keep=0.4)


@pytest.fixture(scope="module")
def lm_40_file(lm_40: Selection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selection") / "lm_40.npz"
    lm_40.save(path)
    return path


@pytest.mark.parametrize("name", ["source", "target", "val", "test"])
def test_stored_jpegs_give_the_same_beton(betons: dict[str, Path], name: str) -> None:
    assert sha256(betons[name]) == DIGESTS[f"write/{name}"]


def test_raw_images_give_the_same_beton(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        (rng.integers(0, 256, (9 + i % 5, 7 + i % 3, 3), dtype=np.uint8), i % 4, i)
        for i in range(23)
    ]
    path = tmp_path / "raw.beton"
    write_beton(path, samples, image_fields(mode="raw"), class_names=list("abcd"), seed=5)
    assert sha256(path) == DIGESTS["write/raw"]


def test_scores_and_rankings_are_the_same(scores: dict[str, Scores]) -> None:
    for name, each in scores.items():
        np.testing.assert_allclose(each.scores, GOLDEN[f"scores/{name}"], rtol=1e-12, err_msg=name)
        np.testing.assert_array_equal(each.ranking(), GOLDEN[f"ranking/{name}"], err_msg=name)


@pytest.mark.parametrize(
    ("name", "methods", "options"),
    [
        ("lm_40", ["label_mapping"], {"keep": 0.4}),
        ("fm_3", ["feature_mapping"], {"keep_classes": 3}),
        ("lm_samples", ["label_mapping"], {"keep_samples": 37}),
        ("lm_bytes", ["label_mapping"], {"keep_bytes": 60000}),
        ("el2n_30", ["el2n"], {"keep": 0.3}),
        ("el2n_balanced", ["el2n"], {"keep": 0.5, "balanced": True}),
        ("lm_within", ["label_mapping"], {"keep": 0.5, "within": "el2n", "keep_within": 0.5}),
        ("combined", ["label_mapping", "feature_mapping"], {"keep": 0.3}),
    ],
)
def test_selections_are_the_same(
    name: str,
    methods: list[str],
    options: dict[str, Any],
    scores: dict[str, Scores],
    index: BetonIndex,
) -> None:
    chosen = [scores[method] for method in methods]
    if "within" in options:
        options = {**options, "within": scores[options["within"]]}
    combined = chosen[0] if len(chosen) == 1 else combine_scores(chosen, combine="sum")
    selection = select(combined, index, **options)
    for part in ("classes", "indices", "label_map"):
        expected = GOLDEN[f"selection/{name}/{part}"]
        np.testing.assert_array_equal(getattr(selection, part), expected, err_msg=part)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shuffled", {"relabel": True}),
        ("class", {"layout": "class"}),
        ("raw", {"images": "raw", "max_resolution": 32}),
    ],
)
def test_compacted_betons_are_the_same(
    name: str, options: dict[str, Any], betons: dict[str, Path], lm_40: Selection, tmp_path: Path
) -> None:
    compact(betons["source"], lm_40, tmp_path / "out.beton", **options)
    assert sha256(tmp_path / "out.beton") == DIGESTS[f"compact/{name}"]


@pytest.mark.parametrize("rank", [0, 1])
def test_orders_are_the_same(rank: int) -> None:
    ids = np.arange(3, 60)
    options = {"seed": 4, "epoch": 2, "rank": rank, "world_size": 2}
    np.testing.assert_array_equal(random_order(ids, **options), GOLDEN[f"order/random/{rank}"])
    found = sequential_order(ids, **options)
    np.testing.assert_array_equal(found, GOLDEN[f"order/sequential/{rank}"])
    alone = quasi_random_order(ids, seed=4, epoch=2, rank=0, world_size=1)
    np.testing.assert_array_equal(alone, GOLDEN["order/quasi_random"])


def digest_of(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for images, labels in batches:
        digest.update(images.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("cache", ["ram", "extents"])
def test_training_pixels_are_the_same(
    cache: str, betons: dict[str, Path], lm_40: Selection
) -> None:
    loader = training_loader(
        betons["source"],
        batch_size=16,
        resolution=32,
        seed=7,
        selection=lm_40,
        relabel=True,
        num_workers=1,
        cache=cache,
    )
    for epoch in range(2):
        assert digest_of(loader) == DIGESTS[f"pixels/train/{cache}/{epoch}"]


def test_evaluation_pixels_are_the_same(betons: dict[str, Path]) -> None:
    loader = evaluation_loader(betons["source"], batch_size=16, resolution=40, num_workers=1)
    assert digest_of(loader) == DIGESTS["pixels/evaluation"]


def check_weights(name: str, checkpoint: str) -> None:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["network"]
    expected = {key for key in GOLDEN if key.startswith(f"weights/{name}/")}
    found: dict[str, NDArray[np.float64]] = {}
    for key, tensor in state.items():
        if tensor.is_floating_point():
            values = tensor.double().numpy()
            summary = [values.sum(), np.abs(values).sum(), *values.ravel()[:4]]
            found[f"weights/{name}/{key}"] = np.array(summary)
    assert found.keys() == expected
    for key in expected:
        np.testing.assert_allclose(found[key], GOLDEN[key], rtol=2e-3, atol=2e-3, err_msg=key)


@pytest.fixture(scope="module")
def pretrained(
    betons: dict[str, Path], lm_40_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    config = pretrain.Config(
        train=betons["source"],
        val=betons["target"],
        selection=lm_40_file,
        run=tmp_path_factory.mktemp("runs") / "pretrain",
        **SMALL,
    )
    return pretrain.pretrain(config)


def check_pretraining(name: str, result: dict[str, Any]) -> None:
    check_weights(name, result["checkpoint"])
    expected = GOLDEN[f"loss/{name}"]
    np.testing.assert_allclose([result["loss"], result["val_accuracy"]], expected, rtol=2e-3)


def test_pretraining_gives_the_same_weights(pretrained: dict[str, Any]) -> None:
    check_pretraining("pretrain", pretrained)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "pretrain_full_head",
            {
                "full_head": True,
                "optimizer": "adamw",
                "ema": 0.9,
                "label_smoothing": 0.1,
                "schedule": "cosine",
            },
        ),
        ("pretrain_pgd", {"attack": "pgd", "robust_steps": 2, "iterations": 4}),
    ],
)
def test_other_pretraining_gives_the_same_weights(
    name: str,
    options: dict[str, Any],
    betons: dict[str, Path],
    lm_40_file: Path,
    tmp_path: Path,
) -> None:
    paths = {"train": betons["source"], "val": betons["target"], "run": tmp_path / name}
    selection = lm_40_file if name == "pretrain_full_head" else None
    config = pretrain.Config(selection=selection, **paths, **{**SMALL, **options})
    check_pretraining(name, pretrain.pretrain(config))


@pytest.mark.parametrize("mode", ["linear_probe", "full_finetuning"])
def test_finetuning_gives_the_same_weights(
    mode: Any, pretrained: dict[str, Any], betons: dict[str, Path], tmp_path: Path
) -> None:
    config = finetune.Config(
        checkpoint=Path(pretrained["checkpoint"]),
        train=betons["target"],
        val=betons["val"],
        test=betons["test"],
        run=tmp_path / mode,
        mode=mode,
        epochs=2,
        batch_size=10,
        lr=0.01,
        schedule="cyclic",
        resolution=32,
        num_workers=1,
    )
    result = finetune.finetune(config)
    check_weights(mode, result["checkpoint"])
    found = [result["val_accuracy"], result["test_accuracy"]]
    np.testing.assert_allclose(found, GOLDEN[f"finetune/{mode}"], atol=1e-6)


def test_moco_gives_the_same_weights(
    betons: dict[str, Path], lm_40_file: Path, tmp_path: Path
) -> None:
    config = pretrain_moco.Config(
        train=betons["source"],
        selection=lm_40_file,
        run=tmp_path / "moco",
        batch_size=16,
        epochs=1,
        queue=64,
        norm_batch=8,
        **RECIPE,
    )
    result = pretrain_moco.pretrain_moco(config)
    check_weights("moco", result["checkpoint"])
    np.testing.assert_allclose(result["loss"], GOLDEN["loss/moco"][0], rtol=2e-3)
