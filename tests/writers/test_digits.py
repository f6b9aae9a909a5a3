"""The demo's data: nothing leaks between the betons, and the same seed writes the same bytes."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex, read_image
from writers import digits

NAMES = {f"{dataset}_{split}" for dataset in digits.DATASETS for split in ("train", "val", "test")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BetonIndex]:
    return digits.write(digits.Config(out=tmp_path_factory.mktemp("digits")))


@pytest.fixture
def few_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {dataset: {"train": 3, "val": 1, "test": 1} for dataset in digits.DATASETS}
    monkeypatch.setattr(digits, "ORIGINALS", few)


def originals(index: BetonIndex) -> set[int]:
    return set(index.column("identifier").tolist())


def test_there_are_six_betons_with_manifests(written: dict[str, BetonIndex]) -> None:
    assert set(written) == NAMES
    for name, index in written.items():
        assert index.path.name == f"{name}.beton"
        assert [field.name for field in index.fields] == ["image", "label", "identifier"]
        assert index.manifest is not None
        dataset = name.partition("_")[0]
        assert list(index.manifest.class_names) == digits.CLASS_NAMES[dataset]


def test_no_original_is_in_two_betons(written: dict[str, BetonIndex]) -> None:
    for one, other in combinations(written.values(), 2):
        assert not originals(one) & originals(other)


def test_every_class_has_as_many_images_as_it_is_given_originals(
    written: dict[str, BetonIndex],
) -> None:
    for name, index in written.items():
        dataset, _, split = name.partition("_")
        per_class = digits.ORIGINALS[dataset][split]
        classes = 80 if dataset == "source" else 10
        assert index.class_counts().tolist() == [per_class] * classes
        assert len(originals(index)) == 10 * per_class


def test_images_are_small_jpegs_of_the_digit_that_the_label_says(
    written: dict[str, BetonIndex],
) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    target = load_digits().target
    for index in written.values():
        images = index.column("image")
        assert (images["mode"] == 0).all()  # ffcv's number of jpg
        assert (images["width"] == 48).all()
        assert (images["height"] == 48).all()
        assert np.array_equal(target[index.column("identifier")], index.labels() % 10)


def test_the_classes_of_the_source_differ_as_their_names_say(
    written: dict[str, BetonIndex],
) -> None:
    index = written["source_train"]
    ids, labels = index.column("identifier"), index.labels()

    def mean_of(name: str) -> np.ndarray:
        label = digits.CLASS_NAMES["source"].index(name)
        samples = np.flatnonzero(labels == label)
        assert len(set(ids[samples])) == len(samples)
        return np.mean([read_image(index, int(i)).mean(axis=2) for i in samples], axis=0)

    upright = mean_of("4-upright")
    for name, turn in (
        ("4-rotated", lambda image: np.rot90(image, -1)),
        ("4-mirrored", np.fliplr),
        ("4-upside_down", lambda image: np.rot90(image, 2)),
    ):
        as_it_is, turned_back = (
            np.corrcoef(upright.ravel(), other.ravel())[0, 1]
            for other in (mean_of(name), turn(mean_of(name)))
        )
        assert turned_back > 0.95
        assert turned_back > as_it_is


def test_the_relevant_classes_are_the_ten_upright_ones() -> None:
    relevant = digits.relevant_classes()
    names = [
        name for name, found in zip(digits.CLASS_NAMES["source"], relevant, strict=True) if found
    ]
    assert names == [f"{digit}-upright" for digit in range(10)]
    assert relevant.shape == (80,)
    assert relevant.dtype == bool


@pytest.mark.usefixtures("few_originals")
def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    one, same, other = (
        digits.write(digits.Config(out=tmp_path / name, seed=seed))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    for name in NAMES:
        assert one[name].path.read_bytes() == same[name].path.read_bytes()
        assert originals(one[name]) != originals(other[name])


@pytest.mark.usefixtures("few_originals")
def test_variants_multiply_the_images_of_the_source_training_split_alone(tmp_path: Path) -> None:
    written = digits.write(digits.Config(out=tmp_path, variants=2))
    assert written["source_train"].class_counts().tolist() == [6] * 80
    assert written["source_val"].class_counts().tolist() == [1] * 80
    assert written["target_train"].class_counts().tolist() == [3] * 10
    pictures = {read_image(written["source_train"], i).tobytes() for i in range(480)}
    assert len(pictures) == 480
