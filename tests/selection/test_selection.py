"""`Selection`: its arrays are consistent, its file, and the check of its beton."""

from dataclasses import replace
from pathlib import Path
from shutil import copy
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import BetonIndex, Selection, StaleArtifactError
from dp4tl_ffcv.artifacts import save_artifact
from dp4tl_ffcv.beton.manifest import new_manifest, read_manifest
from tests.support.labels import write_labels
from tests.support.scores import scores_of

CLASSES, SAMPLES = 12, 34
PRESENT = [0, 1, 3, 4, 5, 7, 8, 9, 10]
CHOICES = st.lists(st.sampled_from(PRESENT), min_size=1, unique=True)


def check_parts(selection: Selection, index: BetonIndex) -> None:
    """Check that the three arrays of a selection are consistent."""
    labels = index.labels(selection.label_field)
    kept = set(selection.classes.tolist())
    assert selection.classes.tolist() == sorted(kept)
    assert selection.indices.tolist() == sorted(set(selection.indices.tolist()))
    assert set(labels[selection.indices].tolist()) <= kept
    for old, new in enumerate(selection.label_map.tolist()):
        assert new == (selection.classes.tolist().index(old) if old in kept else -1)
    assert len(selection) == len(selection.indices)
    assert selection.fingerprint == index.fingerprint
    for array in (selection.classes, selection.indices, selection.label_map):
        assert array.dtype == np.int64
        assert not array.flags.writeable


@given(CHOICES)
def test_of_classes_retains_every_sample_of_the_classes(
    uneven: BetonIndex, classes: list[int]
) -> None:
    selection = Selection.of_classes(uneven, classes)
    check_parts(selection, uneven)
    assert selection.classes.tolist() == sorted(classes)
    expected = [i for i, label in enumerate(uneven.labels()) if label in classes]
    assert selection.indices.tolist() == expected
    assert len(selection.label_map) == CLASSES


@given(st.lists(st.integers(0, SAMPLES - 1), min_size=1))
def test_of_indices_retains_the_samples_and_their_classes(
    uneven: BetonIndex, indices: list[int]
) -> None:
    selection = Selection.of_indices(uneven, indices)
    check_parts(selection, uneven)
    assert selection.indices.tolist() == sorted(set(indices))
    assert selection.classes.tolist() == sorted({int(uneven.labels()[i]) for i in indices})


def test_classes_without_samples_may_be_retained(uneven: BetonIndex) -> None:
    selection = Selection.of_classes(uneven, [2, 9])
    check_parts(selection, uneven)
    assert selection.classes.tolist() == [2, 9]
    assert selection.label_map[9] == 1


def test_num_classes_may_exceed_the_classes_of_the_beton(uneven: BetonIndex) -> None:
    selection = Selection.of_classes(uneven, [9], num_classes=20)
    assert len(selection.label_map) == 20
    assert len(Selection.of_classes(uneven, [9], num_classes=5).label_map) == CLASSES


def test_another_field_may_hold_the_labels(uneven: BetonIndex) -> None:
    for selection in (
        Selection.of_classes(uneven, [6, 0], label_field="other"),
        Selection.of_indices(uneven, [0, 1, 2, 3, 4, 30, 31, 32, 33], label_field="other"),
    ):
        check_parts(selection, uneven)
        assert selection.classes.tolist() == [0, 6]
        assert selection.indices.tolist() == [0, 1, 2, 3, 4, 30, 31, 32, 33]


@pytest.mark.parametrize(
    ("make", "ids", "message"),
    [
        (Selection.of_classes, [1, 1], "^`classes` must be distinct; got 1 more than once"),
        (Selection.of_classes, [0, 12], r"^`classes` must lie in \[0, 12\); .* from 0 to 12"),
        (Selection.of_classes, [2, 6], "^the selection retains no sample"),
        (Selection.of_indices, [0, 34], r"^`indices` must lie in \[0, 34\); .* from 0 to 34"),
        (Selection.of_indices, [], "^the selection retains no sample"),
    ],
)
def test_bad_classes_and_indices_are_rejected(
    make: Any, ids: Any, message: str, uneven: BetonIndex
) -> None:
    with pytest.raises(ValueError, match=message):
        make(uneven, ids)


# Files.


def test_a_selection_comes_back_from_its_file(uneven: BetonIndex, tmp_path: Path) -> None:
    provenance = MappingProxyType({"keep": 0.4, "scores": {"deep": [1, None, "ä"]}})
    selection = Selection.of_classes(uneven, [6, 0], label_field="other", provenance=provenance)
    selection.save(tmp_path / "deep" / "s.npz")
    loaded = Selection.load(tmp_path / "deep" / "s.npz")
    check_parts(loaded, uneven)
    assert loaded.digest() == selection.digest()
    assert loaded.label_field == "other"
    assert loaded.provenance == provenance
    np.testing.assert_array_equal(loaded.label_map, selection.label_map)


def test_a_file_of_another_kind_is_rejected(tmp_path: Path) -> None:
    scores_of(np.ones(3)).save(tmp_path / "s.npz")
    with pytest.raises(ValueError, match=r"is a scores file; a selection file is needed"):
        Selection.load(tmp_path / "s.npz")


def test_another_suffix_is_rejected(uneven: BetonIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`path` must end in \.npz"):
        Selection.of_classes(uneven, [0]).save(tmp_path / "s.npy")


# Betons.


def test_a_selection_is_rejected_for_another_beton(uneven: BetonIndex, photos: Any) -> None:
    selection = Selection.of_classes(uneven, [0])
    selection.check(uneven)
    message = r"^`selection` was made for another beton, not for '.*photos\.beton'"
    with pytest.raises(StaleArtifactError, match=message):
        selection.check(photos.index)


def test_a_selection_is_transferred_to_another_split(photos: Any, other_photos: Any) -> None:
    selection = Selection.of_classes(photos.index, [7, 3], provenance={"keep": 0.2})
    moved = selection.transfer(other_photos.index)
    check_parts(moved, other_photos.index)
    assert moved.classes.tolist() == [3, 7]
    np.testing.assert_array_equal(moved.label_map, selection.label_map)
    expected = np.flatnonzero(np.isin(other_photos.labels, [3, 7]))
    np.testing.assert_array_equal(moved.indices, expected)
    moved.check(other_photos.index)
    assert moved.provenance == {"keep": 0.2, "transferred_from": photos.index.fingerprint}
    samples = Selection.of_indices(photos.index, np.flatnonzero(photos.labels == 4)[:1])
    moved = samples.transfer(other_photos.index)
    np.testing.assert_array_equal(moved.indices, np.flatnonzero(other_photos.labels == 4))


def test_a_beton_of_other_classes_is_no_split(photos: Any, uneven: BetonIndex) -> None:
    with pytest.raises(ValueError, match=r"has 12 classes, but .* source has 10"):
        Selection.of_classes(photos.index, [3]).transfer(uneven)
    with pytest.raises(ValueError, match=r"^the selection retains no sample"):
        Selection.of_classes(uneven, [10]).transfer(photos.index)  # photos have classes 0 to 9


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "owl"), None),
        (("cat", "dog"), None),  # the split has no sample of the last class
        ((), None),  # no manifest
        (("cat", "owl", "dog"), r"class 1 is 'dog' in the .* source, but 'owl' in .*b\.beton"),
        (("ant", "bee", "fly"), "class 0 is 'cat' in the .* source, but 'ant'"),
    ],
)
def test_classes_of_other_names_are_not_transferred(
    names: tuple[str, ...], message: str | None, tmp_path: Path
) -> None:
    write_labels(tmp_path / "a.beton", [0, 1, 2, 1], ("cat", "dog", "owl"))
    Selection.of_classes(tmp_path / "a.beton", [1]).save(tmp_path / "a.npz")
    selection = Selection.load(tmp_path / "a.npz")
    assert selection.class_names == ("cat", "dog", "owl")
    other = write_labels(tmp_path / "b.beton", [1, 0, 1], names)
    if message is None:
        moved = selection.transfer(other)
        assert moved.indices.tolist() == [0, 2]
        assert moved.class_names == names
        return
    with pytest.raises(StaleArtifactError, match=message):
        selection.transfer(other)


def test_a_beton_of_equal_tables_and_other_classes_is_refused(tmp_path: Path) -> None:
    labels = [0, 0, 1, 1]
    cats = write_labels(tmp_path / "a.beton", labels, ("cat", "dog"))
    selection = Selection.of_classes(cats, [1])
    birds = write_labels(tmp_path / "b.beton", labels, ("owl", "tit"))
    assert birds.fingerprint == selection.fingerprint
    with pytest.raises(StaleArtifactError, match=r"^class 0 is 'cat' .*, but 'owl' in .*b\.beton"):
        selection.check(birds)
    selection.check(write_labels(tmp_path / "c.beton", labels))


def test_a_file_without_class_names_is_read(uneven: BetonIndex, tmp_path: Path) -> None:
    selection = Selection.of_classes(uneven, [3, 8])
    arrays = {name: getattr(selection, name) for name in Selection.ARRAYS}
    facts = {"fingerprint": selection.fingerprint, "label_field": "label", "provenance": {}}
    save_artifact(tmp_path / "a.npz", "selection", arrays, facts)
    loaded = Selection.load(tmp_path / "a.npz")
    assert (loaded.class_names, loaded.digest()) == ((), selection.digest())


ARRAYS = {"classes": [1, 3], "indices": [0, 4, 5], "label_map": [-1, 0, -1, 1]}
FACTS = {"fingerprint": "ab", "label_field": "label", "class_names": [], "provenance": {}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": [3, 1]}, "`classes` must be ascending"),
        ({"classes": [1, 1]}, "`classes` must be ascending"),
        ({"classes": [-1, 3]}, "`classes` must be ascending"),
        ({"classes": [1, 4]}, "`classes` must be below 4"),
        ({"classes": [1, 2]}, "`label_map` must number `classes`"),
        ({"classes": [1.0, 3.0]}, "its classes are float64"),
        ({"classes": np.array([1, 3], ">i8")}, "its classes are >i8"),
        ({"classes": [[1, 3]]}, "its classes are int64 of shape"),
        ({"indices": [0, 5, 4]}, "`indices` must be ascending"),
        ({"indices": [-1, 4, 5]}, "`indices` must be ascending"),
        ({"indices": []}, "its indices are float64"),
        ({"indices": np.empty(0, np.int64)}, "the selection retains no sample"),
        ({"indices": np.array([1, 2], np.int32)}, "its indices are int32"),
        ({"label_map": [-1, 1, -1, 0]}, "`label_map` must number `classes`"),
        ({"label_map": [-1, 0, 0, 1]}, "`label_map` must number `classes`"),
        ({"fingerprint": 3}, "'fingerprint' is not of the type str"),
        ({"label_field": None}, "'label_field' is not of the type str"),
        ({"class_names": ["a", 1]}, r"'class_names' is not of the type list\[str\]"),
        ({"provenance": []}, "'provenance' is not of the type dict"),
        ({"provenance": {"clusters": 3}}, "'clusters' is not of the type dict"),
    ],
    ids=str,
)
def test_a_file_of_wrong_values_is_rejected(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    for change in ({}, wrong):
        arrays = {name: np.array({**ARRAYS, **change}[name]) for name in ARRAYS}
        save_artifact(path, "selection", arrays, {n: {**FACTS, **change}[n] for n in FACTS})
        if not change:
            assert Selection.load(path).classes.tolist() == [1, 3]
    with pytest.raises(ValueError, match=rf"a\.npz' is damaged or not a selection .*{message}"):
        Selection.load(path)


def test_sample_ids_above_the_beton_are_rejected(uneven: BetonIndex) -> None:
    selection = Selection.of_indices(uneven, [1])
    wrong = replace(selection, indices=np.array([1, SAMPLES]))
    with pytest.raises(ValueError, match=rf"retains sample {SAMPLES}, but .*{SAMPLES} samples"):
        wrong.check(uneven)


def test_different_selections_have_different_digests(uneven: BetonIndex, photos: Any) -> None:
    selections = [
        Selection.of_classes(uneven, [0]),
        Selection.of_classes(uneven, [1]),
        Selection.of_classes(uneven, [0, 1]),
        Selection.of_classes(uneven, [0], num_classes=13),
        Selection.of_indices(uneven, np.flatnonzero(uneven.labels() == 0)[:-1]),
        Selection.of_classes(photos.index, [0]),
    ]
    digests = [selection.digest() for selection in selections]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    again = Selection.of_classes(uneven, [0], provenance={"keep": 0.1})
    assert again.digest() == digests[0]


def test_a_selection_is_summarised(uneven: BetonIndex) -> None:
    selection = Selection.of_classes(uneven.path, [0, 3])
    assert repr(selection) == "Selection(2 of 12 classes, 14 samples)"
    counts = {"retained_classes": 2, "of_classes": 12, "retained_samples": 14}
    assert selection.summary() == {**counts, "classes": [0, 3]}
    of_beton = {"of_samples": 34, "retained_bytes": 0, "classes": ["class 0", "class 3"]}
    assert selection.summary(uneven) == counts | of_beton
    other = Selection.of_classes(uneven, [2, 6], label_field="other")
    assert other.summary(uneven.path)["classes"] == [2, 6]


def test_classes_without_a_name_are_summarised_by_number(
    uneven: BetonIndex, tmp_path: Path
) -> None:
    path = Path(copy(uneven.path, tmp_path))
    manifest = read_manifest(uneven.path)
    assert manifest is not None
    with new_manifest(path, replace(manifest, class_names=("class 0", "class 1"))):
        pass
    selection = Selection.of_classes(path, [0, 3])
    assert selection.summary(path)["classes"] == ["class 0", 3]
