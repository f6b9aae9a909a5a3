"""`select` against a brute-force selection, in every budget and with every option."""

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import (
    BetonIndex,
    Scores,
    Selection,
    StaleArtifactError,
    image_fields,
    select,
    write_beton,
)
from dp4tl_ffcv.scoring import random_scores
from dp4tl_ffcv.scoring.clustering.clusters import Clusters

CLASSES, SAMPLES = 12, 34
FEW = st.sampled_from([-1.5, 0.0, 0.0, 1.0, 2.0, 2.5])  # few values, so that many are equal
KEEPS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def scores_of(draw: st.DrawFn, unit: Any = "class", count: int | None = None) -> Scores:
    count = count or (CLASSES if unit == "class" else SAMPLES)
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


# Bytes, of a beton whose samples have uneven sizes.


@pytest.fixture(scope="module")
def images(photos: Any) -> BetonIndex:
    """120 JPEGs of 10 classes."""
    index: BetonIndex = photos.index
    return index


def prefix_that_fits(items: Iterable[int], costs: Any, budget: int) -> list[int]:
    retained: list[int] = []
    for item in items:
        if sum(costs[other] for other in (*retained, item)) > budget:
            break
        retained.append(item)
    return retained


@given(scores_of(count=10), st.floats(0.2, 1.2))
def test_keep_bytes_retains_the_best_classes_that_fit(
    images: BetonIndex, scores: Scores, part: float
) -> None:
    sizes = images.sample_bytes()
    costs = [int(sizes[members(images, [c])].sum()) for c in range(10)]
    budget = int(part * sum(costs))
    expected = prefix_that_fits(ranked(scores), costs, budget)
    selection = select(scores, images, keep_bytes=budget)
    check_classes(selection, images, expected)
    assert sizes[selection.indices].sum() <= budget
    exact = int(sizes[selection.indices].sum())
    assert select(scores, images, keep_bytes=exact).digest() == selection.digest()


@given(scores_of("sample", 120), st.floats(0.05, 1.2))
def test_keep_bytes_retains_the_best_samples_that_fit(
    images: BetonIndex, scores: Scores, part: float
) -> None:
    sizes = images.sample_bytes().tolist()
    budget = int(part * sum(sizes))
    expected = prefix_that_fits(ranked(scores), sizes, budget)
    assert select(scores, images, keep_bytes=budget).indices.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("100kB", 100_000),
        ("100 KiB", 102_400),
        ("0.1MB", 100_000),
        ("0.1 MiB", 104_857),
        ("1G", 10**9),
        ("2TiB", 2 << 40),
        (" 90000B ", 90_000),
        ("90000", 90_000),
        (np.int64(90_000), 90_000),
    ],
)
def test_bytes_may_be_text(text: Any, number: int, images: BetonIndex) -> None:
    scores = random_scores(120, seed=0, unit="sample")
    selection = select(scores, images, keep_bytes=text)
    assert selection.provenance["keep_bytes"] == number
    assert selection.digest() == select(scores, images, keep_bytes=number).digest()


# Samples within classes.


def best_of_each(scores: Scores, groups: Any, keep: float) -> set[int]:
    """Take the best share of each group, one by one."""
    best: set[int] = set()
    for group in set(groups):
        inside = [sample for sample in ranked(scores) if groups[sample] == group]
        best |= set(inside[: part_of(keep, len(inside))])
    return best


@given(scores_of(), scores_of("sample"), KEEPS, st.integers(1, 9))
def test_within_keeps_the_best_samples_of_each_retained_class(
    uneven: BetonIndex, scores: Scores, within: Scores, share: float, count: int
) -> None:
    selection = select(scores, uneven, keep_classes=count, within=within, keep_within=share)
    whole = select(scores, uneven, keep_classes=count)
    assert selection.classes.tolist() == whole.classes.tolist()
    assert selection.label_map.tolist() == whole.label_map.tolist()
    best = best_of_each(within, uneven.labels().tolist(), share)
    assert selection.indices.tolist() == sorted(best & set(whole.indices.tolist()))


@given(scores_of(), scores_of("sample"), KEEPS, st.integers(9, SAMPLES))
def test_budgets_of_samples_count_what_is_kept_within(
    uneven: BetonIndex, scores: Scores, within: Scores, share: float, budget: int
) -> None:
    best = best_of_each(within, uneven.labels().tolist(), share)
    costs = [len(best & set(members(uneven, [c]))) for c in range(CLASSES)]
    expected = prefix_that_fits([c for c in ranked(scores) if costs[c]], costs, budget)
    selection = select(scores, uneven, keep_samples=budget, within=within, keep_within=share)
    assert selection.classes.tolist() == sorted(expected)
    assert selection.indices.tolist() == sorted(best & set(members(uneven, expected)))


@given(scores_of(count=10), scores_of("sample", 120), KEEPS, st.floats(0.2, 1.0))
def test_budgets_of_bytes_count_what_is_kept_within(
    images: BetonIndex, scores: Scores, within: Scores, share: float, part: float
) -> None:
    sizes = images.sample_bytes()
    best = best_of_each(within, images.labels().tolist(), share)
    costs = [int(sizes[sorted(best & set(members(images, [c])))].sum()) for c in range(10)]
    budget = max(max(costs), int(part * sum(costs)))
    expected = prefix_that_fits(ranked(scores), costs, budget)
    selection = select(scores, images, keep_bytes=budget, within=within, keep_within=share)
    assert selection.classes.tolist() == sorted(expected)
    assert sizes[selection.indices].sum() == sum(costs[c] for c in expected) <= budget


# The same share of every class.


@given(scores_of("sample"), KEEPS)
def test_balanced_keeps_that_share_of_every_class(
    uneven: BetonIndex, scores: Scores, keep: float
) -> None:
    selection = select(scores, uneven, keep=keep, balanced=True)
    expected = best_of_each(scores, uneven.labels().tolist(), keep)
    assert selection.indices.tolist() == sorted(expected)
    assert selection.classes.tolist() == np.unique(uneven.labels()).tolist()


@given(scores_of("sample"), KEEPS)
def test_balanced_goes_by_pseudo_classes_where_they_are_given(
    uneven: BetonIndex, scores: Scores, keep: float
) -> None:
    groups = pseudo(5)
    selection = select(scores, uneven, keep=keep, balanced=True, clusters=groups)
    expected = best_of_each(scores, groups.labels.tolist(), keep)
    assert selection.indices.tolist() == sorted(expected)


# Pseudo-classes.


def pseudo(count: int, samples: int = SAMPLES, **provenance: Any) -> Clusters:
    """Pseudo-classes, of which number 2 has no sample."""
    labels = np.random.default_rng(1).choice(np.delete(np.arange(count), 2), samples)
    centroids = np.zeros((count, 1), np.float32)
    return Clusters(labels=labels, centroids=centroids, provenance=provenance)


@given(scores_of(count=8), st.integers(1, 7))
def test_the_samples_of_the_best_pseudo_classes_are_retained(
    uneven: BetonIndex, scores: Scores, count: int
) -> None:
    clusters = pseudo(8)
    best = [k for k in ranked(scores) if k in clusters.labels][:count]
    selection = select(scores, uneven, keep_classes=count, clusters=clusters)
    expected = np.flatnonzero(np.isin(clusters.labels, best))
    assert selection.indices.tolist() == expected.tolist()
    assert selection.classes.tolist() == np.unique(uneven.labels()[expected]).tolist()
    assert selection.provenance["clusters"]["retained"] == sorted(best)


@given(scores_of(count=8), scores_of("sample"), KEEPS, st.integers(12, SAMPLES))
def test_pseudo_classes_go_with_within_and_budgets(
    uneven: BetonIndex, scores: Scores, within: Scores, share: float, budget: int
) -> None:
    clusters = pseudo(8)
    best = best_of_each(within, clusters.labels.tolist(), share)
    groups: list[NDArray[np.int64]] = [np.flatnonzero(clusters.labels == k) for k in range(8)]
    costs = [len(best & set(group.tolist())) for group in groups]
    expected = prefix_that_fits([k for k in ranked(scores) if costs[k]], costs, budget)
    selection = select(
        scores, uneven, keep_samples=budget, clusters=clusters, within=within, keep_within=share
    )
    samples = {int(sample) for k in expected for sample in groups[k]}
    assert selection.indices.tolist() == sorted(best & samples)
    assert selection.provenance["clusters"]["retained"] == sorted(expected)


def test_a_source_without_labels_is_selected_from_by_pseudo_classes(tmp_path: Path) -> None:
    samples = [(np.full((8, 8, 3), number, np.uint8), number) for number in range(SAMPLES)]
    fields = {name: kind for name, kind in image_fields().items() if name != "label"}
    index = write_beton(tmp_path / "bare.beton", samples, fields, label_field="identifier")
    clusters = pseudo(8)
    by_cluster = select(random_scores(8, seed=0), index, keep_classes=3, clusters=clusters)
    by_sample = select(random_scores(SAMPLES, seed=0, unit="sample"), index, keep=0.5)
    retained = by_cluster.provenance["clusters"]["retained"]
    assert set(clusters.labels[by_cluster.indices]) == set(retained)
    assert len(by_sample) == 17
    for selection in (by_cluster, by_sample):
        assert selection.classes.size == selection.label_map.size == 0
        selection.save(tmp_path / "s.npz")
        assert Selection.load(tmp_path / "s.npz").digest() == selection.digest()
    with pytest.raises(ValueError, match=r"no field 'y'\. Its fields are image, identifier"):
        select(random_scores(SAMPLES, seed=0, unit="sample"), index, keep=0.5, label_field="y")


def test_a_selection_says_which_options_it_was_made_with(
    uneven: BetonIndex, tmp_path: Path
) -> None:
    within = random_scores(SAMPLES, seed=5, unit="sample")
    clusters = pseudo(8, seed=3)
    selection = select(
        random_scores(8, seed=4), uneven, keep_samples=np.int64(20), within=within,
        keep_within=np.float64(0.5), clusters=clusters,
    )  # fmt: skip
    assert selection.provenance == {
        "method": "random", "unit": "class", "keep_samples": 20, "scores": {"seed": 4},
        "keep_within": 0.5, "within": {"method": "random", "scores": {"seed": 5}},
        "clusters": {
            "num_clusters": 8, "sha256": clusters.digest(), "provenance": {"seed": 3},
            "retained": selection.provenance["clusters"]["retained"],
        },
    }  # fmt: skip
    balanced = select(within, uneven, keep=0.5, balanced=True)
    assert balanced.provenance == {
        "method": "random", "unit": "sample", "keep": 0.5, "balanced": True, "scores": {"seed": 5},
    }  # fmt: skip
    for made in (selection, balanced):
        made.save(tmp_path / "s.npz")
        assert Selection.load(tmp_path / "s.npz").provenance == made.provenance


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
        ({"keep_samples": 3, "keep_bytes": 2}, r"got \['keep_bytes', 'keep_samples'\]"),
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
    message = r"^`scores` was made for another beton than '.*uneven\.beton'"
    with pytest.raises(StaleArtifactError, match=message):
        select(scores, uneven, keep=0.5)
    assert len(select(scores, photos.index, keep=0.5).classes) == 5


def test_labels_that_are_missing_or_no_integers_are_refused(photos: Any) -> None:
    scores = random_scores(10, seed=0)
    with pytest.raises(ValueError, match=r"no field 'y'\. Its fields are image, label, identifier"):
        select(scores, photos.index, keep=0.5, label_field="y")
    with pytest.raises(ValueError, match=r"field 'image' .* its kind is rgb_image"):
        select(scores, photos.index, keep=0.5, label_field="image")


def test_scores_of_more_classes_than_the_manifest_names_are_refused(tmp_path: Path) -> None:
    samples = [(np.zeros((8, 8, 3), np.uint8), label, 0) for label in range(4)]
    names = ["a", "b", "c", "d"]
    index = write_beton(
        tmp_path / "four.beton", samples, image_fields(), class_names=names, seed=None
    )
    with pytest.raises(ValueError, match="`scores` must cover the 4 classes of the beton; got 9"):
        select(random_scores(9, seed=0), index, keep=0.5)


@pytest.mark.parametrize("size", ["", "many", "-5", "0", "5 XB", 0, -1, 2.5, True, "GiB", b"5"])
def test_bytes_that_are_no_number_are_refused(size: Any, images: BetonIndex) -> None:
    with pytest.raises(
        ValueError, match=r"^`keep_bytes` must be a number of bytes, or text such as"
    ):
        select(random_scores(10, seed=0), images, keep_bytes=size)


@pytest.mark.parametrize(("unit", "count"), [("class", 10), ("sample", 120)])
def test_bytes_below_the_best_are_refused(unit: Any, count: int, images: BetonIndex) -> None:
    scores = random_scores(count, seed=0, unit=unit)
    best = scores.ranking()[0]
    ids = members(images, [best]) if unit == "class" else [best]
    least = int(images.sample_bytes()[ids].sum())
    with pytest.raises(
        ValueError, match=rf"^`keep_bytes` must hold the best {unit}, of {least} bytes; got"
    ):
        select(scores, images, keep_bytes=least - 1)
    assert select(scores, images, keep_bytes=least).indices.tolist() == ids


SAMPLE_SCORES = random_scores(SAMPLES, seed=0, unit="sample")
CLASS_SCORES = random_scores(CLASSES, seed=0)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (CLASS_SCORES, {"within": SAMPLE_SCORES}, "^`within` and `keep_within` must be given tog"),
        (CLASS_SCORES, {"keep_within": 0.5}, "^`within` and `keep_within` must be given together"),
        (
            CLASS_SCORES, {"within": CLASS_SCORES, "keep_within": 0.5},
            "^`within` must be sample scores beside class scores; got class scores beside class",
        ),
        (
            SAMPLE_SCORES, {"within": SAMPLE_SCORES, "keep_within": 0.5},
            "^`within` must be sample scores beside class scores; got sample scores beside sample",
        ),
        (
            CLASS_SCORES, {"within": SAMPLE_SCORES, "keep_within": 0.0},
            r"^`keep_within` must lie in \(0, 1\]; got 0.0",
        ),
        (
            CLASS_SCORES,
            {"within": random_scores(33, seed=0, unit="sample"), "keep_within": 1},
            "^`within` must hold one score per sample, 34; got 33",
        ),
        (CLASS_SCORES, {"balanced": True}, "^`balanced` must be given with sample scores and `kee"),
        (SAMPLE_SCORES, {"clusters": pseudo(8)}, "^`clusters` must be given with class scores, or"),
        (
            CLASS_SCORES, {"clusters": pseudo(12, 33)},
            "^`clusters` must hold one pseudo-class per sample, 34; got 33",
        ),
        (CLASS_SCORES, {"clusters": pseudo(8)}, "^`scores` must cover the 8 pseudo-classes; got"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    scores: Scores, options: dict[str, Any], message: str, uneven: BetonIndex
) -> None:
    with pytest.raises(ValueError, match=message):
        select(scores, uneven, keep=0.5, **options)


@pytest.mark.parametrize("budget", [{"keep_samples": 9}, {"keep_bytes": 9}], ids=str)
def test_balanced_takes_no_other_budget(budget: dict[str, int], uneven: BetonIndex) -> None:
    with pytest.raises(ValueError, match=r"^`balanced` must be given with sample scores and"):
        select(SAMPLE_SCORES, uneven, balanced=True, **budget)


def test_parts_of_another_beton_are_refused(uneven: BetonIndex) -> None:
    other = {"source_fingerprint": "0123456789abcdef0"}
    within = random_scores(SAMPLES, seed=0, unit="sample", provenance=other)
    message = "was made for another beton than"
    with pytest.raises(StaleArtifactError, match=f"^`within` {message}"):
        select(CLASS_SCORES, uneven, keep=0.5, within=within, keep_within=0.5)
    with pytest.raises(StaleArtifactError, match=f"^`clusters` {message}"):
        select(CLASS_SCORES, uneven, keep=0.5, clusters=pseudo(12, **other))


def test_scores_of_pseudo_classes_go_with_their_clusters_alone(uneven: BetonIndex) -> None:
    clusters = pseudo(CLASSES)
    scores = random_scores(CLASSES, seed=0, provenance={"clusters_sha256": clusters.digest()})
    assert len(select(scores, uneven, keep=0.5, clusters=clusters))
    with pytest.raises(ValueError, match=r"^`clusters` must be given with scores of pseudo-class"):
        select(scores, uneven, keep=0.5)
    others = Clusters(labels=clusters.labels[::-1], centroids=clusters.centroids)
    with pytest.raises(StaleArtifactError, match=r"^`clusters` must be those that were scored"):
        select(scores, uneven, keep=0.5, clusters=others)
