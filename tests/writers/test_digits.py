"""The demo's data: shared originals, renderings, seeds."""

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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    config = digits.Config(out=tmp_path_factory.mktemp("digits"), targets=TARGETS, num_workers=1)
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


@pytest.fixture
def few_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {dataset: {"train": 3, "val": 1, "test": 1} for dataset in ("source", "target")}
    monkeypatch.setattr(digits, "ORIGINALS", few)


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


def test_the_source_and_each_target_have_three_betons(written: Written) -> None:
    assert tuple(digits.TARGETS) == TARGETS
    assert set(written) == NAMES
    for name, index in written.items():
        assert index.path.name == f"{name}.beton"
        assert [field.name for field in index.fields] == ["image", "label", "identifier"]
        assert index.manifest is not None
        dataset = name.rpartition("_")[0]
        assert list(index.manifest.class_names) == digits.CLASS_NAMES[dataset]


def test_no_two_betons_share_an_original(written: Written) -> None:
    for target in TARGETS:
        names = [f"{name}_{split}" for name, split in product(("source", target), SPLITS)]
        betons = [written[name] for name in names]
        for one, other in combinations(betons, 2):
            assert not originals(one) & originals(other)
    # No training original of one target is tested in another.
    for a, b in permutations(TARGETS, 2):
        for split, other_split in combinations(SPLITS, 2):
            found = originals(written[f"{a}_{split}"]) & originals(written[f"{b}_{other_split}"])
            assert not found


def test_every_class_has_one_image_per_original(written: Written) -> None:
    for name, index in written.items():
        dataset, _, split = name.rpartition("_")
        per_class = digits.ORIGINALS["source" if dataset == "source" else "target"][split]
        classes = {"source": 80, "target_few": 5}.get(dataset, 10)
        assert index.class_counts().tolist() == [per_class] * classes
        assert len(originals(index)) == min(classes, 10) * per_class


def test_images_are_small_jpegs_of_the_labelled_digit(written: Written) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    target = load_digits().target
    for index in written.values():
        images = index.column("image")
        assert (images["mode"] == 0).all()  # ffcv's number of jpg
        assert (images["width"] == 48).all()
        assert (images["height"] == 48).all()
        assert np.array_equal(target[index.column("identifier")], index.labels() % 10)


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


@pytest.mark.parametrize(
    ("target", "rendering", "number"),
    [("target", "upright", 10), ("target_rotated", "rotated", 10), ("target_few", "outline", 5)],
)
def test_the_relevant_classes_are_the_targets_digits_in_its_rendering(
    target: str, rendering: str, number: int
) -> None:
    relevant = digits.relevant_classes(target)
    names = np.array(digits.CLASS_NAMES["source"])[relevant].tolist()
    assert names == [f"{digit}-{rendering}" for digit in range(number)]
    assert relevant.shape == (80,)
    assert relevant.dtype == bool


@pytest.mark.parametrize("target", TARGETS)
def test_the_relevant_classes_look_most_like_the_target(target: str, means: Means) -> None:
    relevant = np.flatnonzero(digits.relevant_classes(target))
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


@pytest.mark.usefixtures("few_originals")
def test_betons_depend_on_the_seed_and_not_on_other_targets(tmp_path: Path) -> None:
    one, same, alone, other = (
        digits.write(digits.Config(out=tmp_path / name, seed=seed, targets=targets, num_workers=0))
        for name, seed, targets in (
            ("one", 1, TARGETS),
            ("same", 1, TARGETS[::-1]),
            ("alone", 1, ("target_few",)),
            ("other", 2, TARGETS),
        )
    )
    for name in NAMES:
        assert one[name].path.read_bytes() == same[name].path.read_bytes()
        assert originals(one[name]) != originals(other[name])
    for name, index in alone.items():
        assert index.path.read_bytes() == one[name].path.read_bytes()


@pytest.mark.usefixtures("few_originals")
def test_variants_multiply_the_source_training_images(tmp_path: Path) -> None:
    written = digits.write(digits.Config(out=tmp_path, variants=2, num_workers=0))
    assert set(written) == {f"{name}_{split}" for name in ("source", "target") for split in SPLITS}
    assert written["source_train"].class_counts().tolist() == [6] * 80
    assert written["source_val"].class_counts().tolist() == [1] * 80
    assert written["target_train"].class_counts().tolist() == [3] * 10
    pictures = {read_image(written["source_train"], i).tobytes() for i in range(480)}
    assert len(pictures) == 480
