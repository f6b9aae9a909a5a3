"""`select` against a brute-force selection, in every budget."""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import (
    BetonIndex,
    Scores,
    Selection,
    StaleArtifactError,
    image_fields,
    random_scores,
    select,
    write_beton,
)

CLASSES, SAMPLES = 12, 34
FEW = st.sampled_from([-1.5, 0.0, 0.0, 1.0, 2.0, 2.5])  # few values, so that many are equal
KEEPS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def scores_of(draw: st.DrawFn, unit: Any = "class") -> Scores:
    count = CLASSES if unit == "class" else SAMPLES
    values = st.lists(FEW, min_size=count, max_size=count)
    return Scores(
        scores=np.array(draw(values)), tie=np.array(draw(values)), method="drawn", unit=unit
    )


def ranked(scores: Scores) -> list[int]:
    """Sort by score descending, then tie key descending, then id ascending."""
    order = sorted(
        (-s, -t, i) for i, (s, t) in enumerate(zip(scores.scores, scores.tie, strict=True))
    )
    return [i for _, _, i in order]


def part_of(keep: float, total: int) -> int:
    exact = Decimal(repr(keep)) * total
    return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))


def members(index: BetonIndex, classes: list[int]) -> list[int]:
    return [i for i, label in enumerate(index.labels()) if label in classes]


def check_classes(selection: Selection, index: BetonIndex, classes: list[int]) -> None:
    assert selection.classes.tolist() == sorted(classes)
    assert selection.indices.tolist() == members(index, classes)


# Against brute force.


@given(scores_of(), KEEPS)
def test_keep_retains_that_share_of_the_best_classes(
    uneven: BetonIndex, scores: Scores, keep: float
) -> None:
    best = [c for c in ranked(scores) if members(uneven, [c])]
    check_classes(select(scores, uneven, keep=keep), uneven, best[: part_of(keep, 9)])


@given(scores_of(), st.integers(1, 9))
def test_keep_classes_retains_that_many_of_the_best(
    uneven: BetonIndex, scores: Scores, keep: int
) -> None:
    best = [c for c in ranked(scores) if members(uneven, [c])]
    check_classes(select(scores, uneven, keep_classes=keep), uneven, best[:keep])


@given(scores_of(), st.integers(9, SAMPLES))
def test_keep_samples_retains_the_best_classes_that_fit(
    uneven: BetonIndex, scores: Scores, keep: int
) -> None:
    best, retained = [c for c in ranked(scores) if members(uneven, [c])], []
    while best and len(members(uneven, [*retained, best[0]])) <= keep:
        retained.append(best.pop(0))
    check_classes(select(scores, uneven, keep_samples=keep), uneven, retained)


@given(scores_of("sample"), KEEPS)
def test_keep_retains_that_share_of_the_best_samples(
    uneven: BetonIndex, scores: Scores, keep: float
) -> None:
    selection = select(scores, uneven, keep=keep)
    assert selection.indices.tolist() == sorted(ranked(scores)[: part_of(keep, SAMPLES)])
    assert selection.classes.tolist() == sorted(set(uneven.labels()[selection.indices].tolist()))


@given(scores_of("sample"), st.integers(1, SAMPLES))
def test_keep_samples_retains_that_many_of_the_best_samples(
    uneven: BetonIndex, scores: Scores, keep: int
) -> None:
    selection = select(scores, uneven, keep_samples=keep)
    assert selection.indices.tolist() == sorted(ranked(scores)[:keep])


@pytest.mark.parametrize("unit", ["class", "sample"])
@given(data=st.data(), keeps=st.tuples(KEEPS, KEEPS))
def test_a_larger_keep_retains_all_that_a_smaller_does(
    uneven: BetonIndex, unit: str, data: st.DataObject, keeps: tuple[float, float]
) -> None:
    scores = data.draw(scores_of(unit))
    small, large = (select(scores, uneven, keep=keep) for keep in sorted(keeps))
    assert set(small.indices) <= set(large.indices)
    assert set(small.classes) <= set(large.classes)


# Single rules.


@pytest.mark.parametrize(
    ("keep", "retained"),
    [(1e-9, 1), (0.16, 1), (1.5 / 9, 2), (0.5, 5), (0.6, 5), (17 / 18, 9), (1.0, 9), (1, 9)],
)
def test_shares_are_rounded_halves_up_and_to_one_at_least(
    keep: float, retained: int, uneven: BetonIndex
) -> None:
    selection = select(random_scores(CLASSES, seed=0), uneven, keep=keep)
    assert len(selection.classes) == retained


def test_halves_are_those_of_the_decimal_number(hundred: BetonIndex) -> None:
    scores = random_scores(100, seed=0, unit="sample")
    assert 0.145 * 100 < 14.5
    for keep in (0.145, 0.285, 0.555, 0.565, 0.575):
        assert (
            len(select(scores, hundred, keep=keep)) == part_of(keep, 100) == round(100 * keep + 0.1)
        )


def test_classes_without_samples_are_passed_over(uneven: BetonIndex) -> None:
    values = np.zeros(CLASSES)
    values[[2, 6, 11]] = 9.0  # without samples
    values[[9, 3]] = 1.0
    scores = Scores(scores=values, tie=values, method="x")
    check_classes(select(scores, uneven, keep_classes=2), uneven, [3, 9])
    check_classes(select(scores, uneven, keep=1.0), uneven, [0, 1, 3, 4, 5, 7, 8, 9, 10])


def test_scores_may_cover_more_classes_than_a_beton_without_names_shows(
    hundred: BetonIndex,
) -> None:
    values = np.arange(3.0)
    selection = select(Scores(scores=values, tie=values, method="x"), hundred, keep_classes=1)
    assert selection.classes.tolist() == [0]
    assert selection.label_map.tolist() == [0, -1, -1]


def test_another_field_may_hold_the_class_ids(uneven: BetonIndex) -> None:
    scores = Scores(scores=np.arange(12.0), tie=np.zeros(12), method="x")
    selection = select(scores, uneven, keep_classes=2, label_field="other")
    assert selection.label_field == "other"
    assert selection.classes.tolist() == [5, 6]
    assert selection.indices.tolist() == list(range(25, 34))


def test_a_selection_says_what_it_was_made_from(uneven: BetonIndex, tmp_path: Any) -> None:
    scores = random_scores(CLASSES, seed=4)
    selection = select(scores, uneven, keep=0.5)
    assert selection.fingerprint == uneven.fingerprint
    assert selection.provenance == {
        "method": "random", "unit": "class", "keep": 0.5, "scores": {"seed": 4},
    }  # fmt: skip
    selection.save(tmp_path / "s.npz")
    assert Selection.load(tmp_path / "s.npz").provenance == selection.provenance


@pytest.mark.parametrize(
    "budget",
    [
        {"keep": np.float32(0.5)},
        {"keep": np.float64(0.5)},
        {"keep_classes": np.int64(5)},
        {"keep_samples": np.uint8(20)},
    ],
    ids=str,
)
def test_numpys_numbers_do_as_budgets(
    budget: dict[str, Any], uneven: BetonIndex, tmp_path: Any
) -> None:
    scores = random_scores(CLASSES, seed=np.int64(4))
    selection = select(scores, uneven, **budget)
    same = select(scores, uneven, **{name: value.item() for name, value in budget.items()})
    assert selection.digest() == same.digest()
    selection.save(tmp_path / "s.npz")
    scores.save(tmp_path / "scores.npz")


# Bad input.


@pytest.mark.parametrize("unit", ["class", "sample"])
@pytest.mark.parametrize(
    "keep", [0, 0.0, 1.5, 2, -1, -0.1, float("nan"), float("inf"), True, False, "0.5", 0.5j]
)
def test_a_share_outside_of_0_to_1_is_refused(keep: Any, unit: Any, uneven: BetonIndex) -> None:
    scores = random_scores(CLASSES if unit == "class" else SAMPLES, seed=0, unit=unit)
    with pytest.raises(ValueError, match=r"^`keep` must lie in \(0, 1\]; got .*such as 0\.4"):
        select(scores, uneven, keep=keep)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"keep_classes": 0}, r"^`keep_classes` must lie in \[1, 9\]; got 0"),
        ({"keep_classes": 10}, r"^`keep_classes` must lie in \[1, 9\]; got 10"),
        ({"keep_classes": -3}, r"^`keep_classes` must lie in \[1, 9\]; got -3"),
        ({"keep_samples": 0}, r"^`keep_samples` must lie in \[1, 34\]; got 0"),
        ({"keep_samples": 35}, r"^`keep_samples` must lie in \[1, 34\]; got 35"),
    ],
)  # fmt: skip
def test_a_number_that_is_too_small_or_large_is_refused(
    budget: dict[str, int], message: str, uneven: BetonIndex
) -> None:
    with pytest.raises(ValueError, match=message):
        select(random_scores(CLASSES, seed=0), uneven, **budget)


@pytest.mark.parametrize("name", ["keep_classes", "keep_samples"])
@pytest.mark.parametrize("value", [True, 3.0, "3", np.float64(3)], ids=repr)
def test_a_number_that_is_not_whole_is_refused(name: str, value: Any, uneven: BetonIndex) -> None:
    with pytest.raises(TypeError, match=rf"^`{name}` must be an int; got"):
        select(random_scores(CLASSES, seed=0), uneven, **{name: value})


def test_a_budget_below_the_best_class_is_refused(uneven: BetonIndex) -> None:
    values = np.eye(CLASSES)[3]
    scores = Scores(scores=values, tie=values, method="x")
    with pytest.raises(ValueError, match=r"^`keep_samples` must hold the best class, of 9 samples"):
        select(scores, uneven, keep_samples=8)


@pytest.mark.parametrize(
    ("budgets", "found"),
    [
        ({}, "got none"),
        ({"keep": 0.5, "keep_classes": 2}, r"got \['keep', 'keep_classes'\]"),
        ({"keep": 0.5, "keep_classes": 2, "keep_samples": 3}, "got .*Choose one budget"),
    ],
)  # fmt: skip
def test_exactly_one_budget_is_given(
    budgets: dict[str, Any], found: str, uneven: BetonIndex
) -> None:
    with pytest.raises(ValueError, match=f"exactly one must be given; {found}"):
        select(random_scores(CLASSES, seed=0), uneven, **budgets)


def test_a_number_of_classes_makes_no_sense_for_sample_scores(uneven: BetonIndex) -> None:
    scores = random_scores(SAMPLES, seed=0, unit="sample")
    with pytest.raises(ValueError, match=r"^`keep_classes` must not be given with sample scores"):
        select(scores, uneven, keep_classes=3)


def test_too_few_class_scores_are_refused(uneven: BetonIndex) -> None:
    with pytest.raises(
        ValueError, match=r"^`scores` must cover the 12 classes of the beton; got 11"
    ):
        select(random_scores(11, seed=0), uneven, keep=0.5)


@pytest.mark.parametrize("count", [SAMPLES - 1, SAMPLES + 1])
def test_sample_scores_of_another_number_are_refused(count: int, uneven: BetonIndex) -> None:
    with pytest.raises(
        ValueError, match=rf"^`scores` must hold one score per sample, 34; got {count}"
    ):
        select(random_scores(count, seed=0, unit="sample"), uneven, keep=0.5)


def test_scores_of_another_beton_are_refused(uneven: BetonIndex, photos: Any) -> None:
    other = photos.index.fingerprint
    scores = Scores(
        scores=np.ones(10), tie=np.ones(10), method="fm",
        provenance={"source_fingerprint": other},
    )  # fmt: skip
    message = f"^`scores` .*fingerprint {other[:16]}, this beton has {uneven.fingerprint[:16]}"
    with pytest.raises(StaleArtifactError, match=message):
        select(scores, uneven, keep=0.5)
    assert len(select(scores, photos.index, keep=0.5).classes) == 5


def test_labels_that_are_missing_or_no_integers_are_refused(photos: Any) -> None:
    scores = random_scores(10, seed=0)
    with pytest.raises(
        ValueError, match=r"^`field` must be one of image, label, identifier; got 'y'"
    ):
        select(scores, photos.index, keep=0.5, label_field="y")
    with pytest.raises(ValueError, match=r"^`image` must be an integer field; got kind rgb_image"):
        select(scores, photos.index, keep=0.5, label_field="image")


def test_scores_of_more_classes_than_the_manifest_names_are_refused(tmp_path: Path) -> None:
    samples = [(np.zeros((8, 8, 3), np.uint8), label, 0) for label in range(4)]
    names = ["a", "b", "c", "d"]
    index = write_beton(
        tmp_path / "four.beton", samples, image_fields(), class_names=names, seed=None
    )
    with pytest.raises(ValueError, match="`scores` must cover the 4 classes of the beton; got 9"):
        select(random_scores(9, seed=0), index, keep=0.5)
