"""The demo's data: shared originals, renderings, seeds."""

from collections.abc import Iterator
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv import BetonIndex, read_image
from writers import digits

SPLITS = ("train", "val", "test")
TARGETS = ("target", "target_rotated", "target_few")
Written = dict[str, BetonIndex]
Means = dict[str, list[NDArray[np.float64]]]
NAMES = {f"{dataset}_{split}" for dataset, split in product(("source", *TARGETS), SPLITS)}


@pytest.fixture(scope="module", autouse=True)
def few_originals() -> Iterator[None]:
    """Use fewer originals than there are, to save time."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    assert sum(digits.ORIGINALS.values()) <= np.bincount(load_digits().target).min()
    few = {key: 16 if key[1] == "train" else 2 for key in digits.ORIGINALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "ORIGINALS", few)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    config = digits.Config(out=tmp_path_factory.mktemp("digits"), targets=TARGETS, num_workers=0)
    return digits.write(config)


@pytest.fixture(scope="module")
def means(written: Written) -> Means:
    """The mean training image of each class, in grey, by dataset."""
    found = {}
    for name in ("source", *TARGETS):
        index = written[f"{name}_train"]
        images = np.stack([read_image(index, i).mean(axis=2) for i in range(len(index))])
        labels = index.labels()
        found[name] = [images[labels == label].mean(axis=0) for label in range(index.num_classes)]
    return found


def originals(index: BetonIndex) -> set[int]:
    return set(index.column("identifier").tolist())


def enlarged(image: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    edge = digits.SIDE * (1 - 1 / factor) / 2
    box = (edge, edge, digits.SIDE - edge, digits.SIDE - edge)
    size = (digits.SIDE, digits.SIDE)
    picture = Image.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box), dtype=np.float64)


def alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_every_class_of_each_beton_has_one_small_jpeg_per_original(written: Written) -> None:
    assert tuple(digits.TARGETS) == TARGETS
    assert set(written) == NAMES
    target = pytest.importorskip("sklearn.datasets").load_digits().target
    for name, index in written.items():
        dataset, _, split = name.rpartition("_")
        assert index.path.name == f"{name}.beton"
        assert [field.name for field in index.fields] == ["image", "label", "identifier"]
        assert list(index.manifest.class_names) == digits.CLASS_NAMES[dataset]
        per_class = digits.ORIGINALS["source" if dataset == "source" else "target", split]
        classes = {"source": 80, "target_few": 5}.get(dataset, 10)
        assert index.class_counts().tolist() == [per_class] * classes
        assert len(originals(index)) == min(classes, 10) * per_class
        images = index.column("image")
        sizes = {(0, 48, 48)}  # 0 is ffcv's number of jpg
        assert set(images[["mode", "width", "height"]].tolist()) == sizes
        assert np.array_equal(target[index.column("identifier")], index.labels() % 10)


def test_no_two_betons_share_an_original(written: Written) -> None:
    for target in TARGETS:
        names = [f"{name}_{split}" for name, split in product(("source", target), SPLITS)]
        for one, other in combinations(names, 2):
            assert not originals(written[one]) & originals(written[other])
    # No training original of one target is tested in another.
    for a, b in permutations(TARGETS, 2):
        for split, other_split in combinations(SPLITS, 2):
            one, other = written[f"{a}_{split}"], written[f"{b}_{other_split}"]
            assert not originals(one) & originals(other)


def test_the_name_of_a_source_class_says_how_it_is_turned(means: Means) -> None:
    mean_of = dict(zip(digits.CLASS_NAMES["source"], means["source"], strict=True))
    for name, turn in (
        ("4-rotated", lambda image: np.rot90(image, -1)),
        ("4-mirrored", np.fliplr),
        ("4-upside_down", lambda image: np.rot90(image, 2)),
    ):
        turned_back = alike(mean_of["4-upright"], turn(mean_of[name]))
        assert turned_back > 0.95
        assert turned_back > alike(mean_of["4-upright"], mean_of[name])


@pytest.mark.parametrize("target", TARGETS)
def test_the_relevant_classes_look_most_like_the_target(target: str, means: Means) -> None:
    relevant = np.flatnonzero(digits.relevant_classes(target))
    rendering = digits.TARGETS[target].rendering
    names = [f"{digit}-{rendering}" for digit in digits.CLASS_NAMES[target]]
    assert [digits.CLASS_NAMES["source"][label] for label in relevant] == names
    likeness = np.zeros(len(digits.RENDERINGS))
    for digit in range(len(relevant)):
        # The mean scale is 0.775 in targets and 0.95 in the source.
        mine = enlarged(means[target][digit], 0.95 / 0.775)
        likeness += [alike(mine, other) for other in means["source"][digit::10]]
    assert likeness.argmax() == relevant[0] // 10
    assert likeness.max() > 0.9 * len(relevant)


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`targets` must be one of target, .*; got 'another'"):
        digits.write(digits.Config(out=tmp_path, targets=("target", "another")))
    assert not list(tmp_path.iterdir())


def test_betons_depend_on_the_seed_and_not_on_other_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "ORIGINALS", dict.fromkeys(digits.ORIGINALS, 1))
    every, one, other = (
        digits.write(digits.Config(out=tmp_path / name, seed=seed, targets=targets, num_workers=0))
        for name, seed, targets in (
            ("every", 1, TARGETS),
            ("one", 1, ("target_few",)),
            ("other", 2, ("target_few",)),
        )
    )
    for name, index in one.items():
        assert index.path.read_bytes() == every[name].path.read_bytes()
        assert originals(index) != originals(other[name])


def test_variants_multiply_the_source_training_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {key: 2 if key[1] == "train" else 1 for key in digits.ORIGINALS}
    monkeypatch.setattr(digits, "ORIGINALS", few)
    written = digits.write(digits.Config(out=tmp_path, variants=2, num_workers=0))
    assert set(written) == {f"{name}_{split}" for name in ("source", "target") for split in SPLITS}
    assert written["source_train"].class_counts().tolist() == [4] * 80
    assert written["source_val"].class_counts().tolist() == [1] * 80
    assert written["target_train"].class_counts().tolist() == [2] * 10
    pictures = {read_image(written["source_train"], i).tobytes() for i in range(320)}
    assert len(pictures) == 320
