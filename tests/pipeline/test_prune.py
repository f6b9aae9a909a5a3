"""`prune`: the same files as the steps taken alone, several targets, resumed and finished runs."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from dp4tl_ffcv import (
    BetonIndex,
    Features,
    Scores,
    Selection,
    build_model,
    cluster,
    combine_scores,
    extract_features,
    prune,
    pruning_cost,
    save_checkpoint,
    select,
)
from dp4tl_ffcv.pipeline.pruned import SELECTION, Pruned
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import vote_matrix
from tests.support.images import picture, write_images
from tests.support.models import make

CROPS: dict[str, Any] = {"resolution": 16, "crop_ratio": 1.0}
SOURCE, TARGETS = 5, {"pets": ("cat", "dog"), "cars": ("bus", "van", "car")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 5 classes in `source/`, two targets in `pets/` and `cars/`, a surrogate."""
    root = tmp_path_factory.mktemp("data")
    torch.manual_seed(3)
    save_checkpoint(root / "surrogate.pt", make(num_classes=SOURCE))
    names = {"source": [f"class {n}" for n in range(SOURCE)], **TARGETS}
    for seed, (name, classes) in enumerate(names.items()):
        (root / name).mkdir()
        count = 6 * len(classes)
        images = [picture(20, 24, 100 * seed + n) for n in range(count)]
        labels = np.arange(count) % len(classes)
        write_images(root / name / "train.beton", images, labels, class_names=classes)
    return root


@pytest.mark.parametrize(
    ("method", "rule", "options"),
    [
        ("label_mapping", {"keep": 0.4}, {}),
        ("feature-mapping", {"keep_classes": 3}, {}),
        ("feature_mapping", {"keep_samples": 20}, {"clusters": 4}),
        ("similarity", {"keep": 0.4}, {"options": {"neighbors": 2, "unit": "sample"}}),
        ("semdedup", {"keep": 0.5}, {"clusters": 3}),
        ("el2n", {"keep": 0.5}, {}),
        ("grand", {"keep": 0.5}, {}),
        ("random", {"keep": 0.6}, {"options": {"seed": 7}}),
    ],
)
def test_the_files_are_those_of_the_steps(
    data: Path, tmp_path: Path, method: str, rule: dict[str, Any], options: dict[str, Any]
) -> None:
    given = {"surrogate": data / "surrogate.pt", "method": method, **rule, **options, **CROPS}
    done = prune(data / "source", data / "pets", tmp_path / "out", **given)

    index = BetonIndex.open(data / "source" / "train.beton")
    chosen = methods.get(method.replace("-", "_"))
    inputs: dict[str, Any] = {"beton": index, "models": [data / "surrogate.pt"], **CROPS}
    inputs |= options.get("options", {})
    for name, beton in (("target", data / "pets" / "train.beton"), ("source", index)):
        logits = chosen.outputs == "logits"
        folder = tmp_path / name
        extract_features(data / "surrogate.pt", beton, folder, logits=logits, **CROPS)
        inputs[name] = folder
    if "clusters" in options:
        inputs["clusters"] = cluster(tmp_path / "source", options["clusters"])
    inputs = {name: inputs[name] for name in inputs if name in chosen.flags}
    scores = methods.score(chosen.name, **inputs)
    if scores.unit == "class" and "clusters" in inputs:
        rule = {**rule, "clusters": inputs["clusters"]}
    expected = select(scores, index, **rule)

    found = Scores.load(tmp_path / "out" / "scores.npz")
    np.testing.assert_array_equal(found.scores, scores.scores)
    np.testing.assert_array_equal(found.tie_break, scores.tie_break)
    assert done.selection.digest() == expected.digest()
    assert Selection.load(tmp_path / "out" / "selection.npz").digest() == expected.digest()


def pruned(data: Path, out: Path, **options: Any) -> Pruned:
    """Prune for both targets to two classes."""
    given: dict[str, Any] = {"surrogate": data / "surrogate.pt", "keep": 0.4, **CROPS, **options}
    return prune(data / "source", [data / name for name in TARGETS], out, **given)


def kill(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune until the features are made."""
    with monkeypatch.context() as patched:
        patched.setattr(methods, "score", MagicMock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pruned(data, out)


def test_several_targets_are_combined(data: Path, tmp_path: Path) -> None:
    done = pruned(data, tmp_path / "out", weights=(3, 1))
    of_each = [Scores.load(tmp_path / "out" / f"scores_{n}.npz") for n in range(2)]
    expected = select(of_each, data / "source" / "train.beton", keep=0.4, weights=(3, 1))
    assert done.selection.digest() == expected.digest()
    assert [each.images for each in [one.votes for one in of_each] if each] == [12, 18]


def test_kept_classes_are_shown_with_the_target_class_that_they_serve(
    data: Path, tmp_path: Path
) -> None:
    shown = pruned(data, tmp_path / "out", keep=1.0).summary()["classes"]
    votes = [Features.load(tmp_path / "out" / "features" / f"target_{n}") for n in range(2)]
    counts = np.concatenate([vote_matrix(each) for each in votes])  # (5, C): two pets, three cars
    names = [name for each in TARGETS.values() for name in each]
    for each in shown:
        of_class = counts[:, int(each["class"].split()[1])]
        assert each["votes"] == of_class.sum()
        assert each.get("for") == (names[of_class.argmax()] if of_class.any() else None)
    assert sum(each["votes"] for each in shown) == 30
    order = [int(each["class"].split()[1]) for each in shown]
    of_each = [Scores.load(tmp_path / "out" / f"scores_{n}.npz") for n in range(2)]
    assert order == combine_scores(of_each).ranking().tolist()


def test_compact_writes_the_retained_samples(data: Path, tmp_path: Path) -> None:
    done = pruned(data, tmp_path / "out", compact=True)
    assert len(BetonIndex.open(str(done.compacted))) == len(done.selection)
    assert done.summary()["beton"] == str(tmp_path / "out" / "train.beton")


def test_a_finished_call_does_nothing_and_a_changed_one_reuses_the_features(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pruned(data, tmp_path / "out")
    scored = MagicMock(side_effect=methods.score)
    monkeypatch.setattr(methods, "score", scored)
    assert pruned(data, tmp_path / "out").selection.digest() == before.selection.digest()
    scored.assert_not_called()
    with pytest.raises(ValueError, match=r"a run with other values of keep. .*`overwrite`"):
        pruned(data, tmp_path / "out", keep=0.6)
    features = tmp_path / "out" / "features" / "target_0" / "features.npy"
    made = features.stat().st_mtime_ns
    assert len(pruned(data, tmp_path / "out", keep=0.6, overwrite=True).selection.classes) == 3
    assert features.stat().st_mtime_ns == made
    pruned(data, tmp_path / "out", keep=0.6, overwrite=True, stretch_contrast=True)
    assert features.stat().st_mtime_ns > made


def test_other_settings_after_a_kill_need_overwrite(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(data, tmp_path / "out", monkeypatch)
    for _ in range(2):  # the folder is not changed
        with pytest.raises(ValueError, match="holds a run with other values of crop_ratio"):
            pruned(data, tmp_path / "out", crop_ratio=0.5)
    done = pruned(data, tmp_path / "out", crop_ratio=0.5, overwrite=True)
    header = json.loads((tmp_path / "out/features/target_0/header.json").read_text())
    assert header["provenance"]["crop_ratio"] == 0.5
    assert len(done.selection.classes) == 2


def test_overwrite_leaves_no_file_of_the_call_before(data: Path, tmp_path: Path) -> None:
    pruned(data, tmp_path / "out", compact=True)
    prune(
        data / "source", data / "pets", tmp_path / "out", surrogate=data / "surrogate.pt",
        keep=0.2, overwrite=True, **CROPS,
    )  # fmt: skip
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"config.json", "log.jsonl", "result.json", "features", "scores.npz", SELECTION}


def test_models_in_memory_are_known_by_their_weights(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    models = [build_model("resnet8_w16", SOURCE) for _ in range(2)]
    pruned(data, tmp_path / "out", surrogate=models[0])
    with pytest.raises(ValueError, match="other values of surrogate"):
        pruned(data, tmp_path / "out", surrogate=models[1])


def test_a_surrogate_is_made_after_the_checks_and_only_if_it_is_needed(
    data: Path, tmp_path: Path
) -> None:
    make_one = MagicMock(return_value=data / "surrogate.pt")
    with pytest.raises(ValueError, match="keep"):
        pruned(data, tmp_path / "out", surrogate=make_one, keep=1.5)
    pruned(data, tmp_path / "random", surrogate=make_one, method="random")
    make_one.assert_not_called()
    pruned(data, tmp_path / "out", surrogate=make_one)
    make_one.assert_called_once_with()


def test_a_killed_call_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(data, tmp_path / "out", monkeypatch)
    features = tmp_path / "out" / "features" / "target_1" / "features.npy"
    made = features.stat().st_mtime_ns
    assert len(pruned(data, tmp_path / "out").selection.classes) == 2
    assert features.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "nope"}, "`method` must be one of"),
        ({"method": "forgetting"}, "forgetting needs dynamics. Pass them as `options`, or take"),
        ({"method": "semdedup"}, "semdedup needs `clusters`, a number of them"),
        ({"clusters": 3}, "label_mapping uses no `clusters`"),
        ({"weights": (1, 1, 1)}, "`weights` must hold a number for each of the 2 targets"),
        ({"weights": (1, 1), "method": "el2n"}, "el2n does not see the targets"),
        ({"keep": "auto", "method": "similarity"}, "keep `auto` decides by votes"),
        ({"options": {"neighbors": 3}}, "label_mapping has no option neighbors; it has none"),
        ({"keep_classes": 2}, "give exactly one of"),
        ({"keep": 1.5}, "keep"),
        ({"surrogate": "nope"}, "neither a checkpoint, a run folder nor the name"),
    ],
)
def test_wrong_arguments_are_refused(
    data: Path, tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        pruned(data, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("method", "images", "numbers"),
    [
        ("label_mapping", 30, 64),
        ("feature_mapping", 60, 64),
        ("el2n", 30, 69),
        ("random", 0, 0),
        ("grand", 90, 0),
    ],
)
def test_the_cost_is_that_of_the_features(
    data: Path, method: str, images: int, numbers: int
) -> None:
    betons = (data / "source", [data / name for name in TARGETS])
    cost = pruning_cost(*betons, surrogate=data / "surrogate.pt", method=method, **CROPS)
    assert cost.images == images
    assert cost.feature_bytes == 4 * numbers * images
    assert cost.seconds == pytest.approx(images / cost.images_per_second)
    assert cost.summary()["seconds"] == cost.seconds


def test_no_target_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`target` is empty"):
        prune(data / "source", [], tmp_path / "out", surrogate="resnet18", keep=0.5)
