"""`select` against brute force, for every budget and option."""

from collections.abc import Iterable
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import (
    BetonIndex,
    Clusters,
    Scores,
    Selection,
    StaleArtifactError,
    combine_scores,
    image_fields,
    select,
    write_beton,
)
from dp4tl_ffcv.scoring import random_scores
from tests.support.scores import clusters_of, drawn_scores, ranked, scores_of

CLASSES, SAMPLES = 12, 34
KEEPS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
CLASS_SCORES = random_scores(CLASSES, seed=0)
SAMPLE_SCORES = random_scores(SAMPLES, seed=0, unit="sample")


def part_of(keep: float, total: int) -> int:
    exact = Decimal(repr(keep)) * total
    return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))


def members(index: BetonIndex, classes: list[int]) -> list[int]:
    ids: list[int] = np.flatnonzero(np.isin(index.labels(), classes)).tolist()
    return ids


def prefix_that_fits(items: Iterable[int], costs: Any, budget: int) -> list[int]:
    retained: list[int] = []
    for item in items:
        budget -= costs[item]
        if budget < 0:
            break
        retained.append(item)
    return retained


def best_of_each(scores: Scores, groups: Any, keep: float) -> set[int]:
    """Return the best share of each group."""
    best: set[int] = set()
    ranking = ranked(scores)
    for group in set(groups):
        inside = [sample for sample in ranking if groups[sample] == group]
        best |= set(inside[: part_of(keep, len(inside))])
    return best


def pseudo(count: int, samples: int = SAMPLES, **provenance: Any) -> Clusters:
    """Return pseudo-classes. Number 2 has no sample."""
    labels = np.random.default_rng(1).choice(np.delete(np.arange(count), 2), samples)
    return clusters_of(labels, np.zeros((count, 1)), **provenance)


@pytest.fixture(scope="module")
def images(photos: Any) -> BetonIndex:
    """120 JPEGs of 10 classes."""
    index: BetonIndex = photos.index
    return index


# Against brute force.


def budget_by_hand(
    data: st.DataObject, name: str, scores: Scores, ranking: list[int], costs: Any
) -> Any:
    """Draw a budget; return its value and the entries of the ranking that it retains."""
    if name == "min_score":
        best = max(scores.scores[entry] for entry in ranking)
        value = data.draw(st.sampled_from([best, best - 0.5, -10.0]))
        return value, [entry for entry in ranking if scores.scores[entry] >= value]
    if name == "keep":
        keep = data.draw(KEEPS)
        return keep, ranking[: part_of(keep, len(ranking))]
    number = data.draw(st.integers(1, len(ranking)))
    if name == "keep_classes":
        return number, ranking[:number]
    budget = sum(costs[entry] for entry in ranking[:number])
    budget += data.draw(st.integers(0, min(2, sum(costs) - budget)))
    return budget, prefix_that_fits(ranking, costs, budget)


@pytest.mark.parametrize(
    "name", ["keep", "keep_classes", "keep_samples", "keep_bytes", "min_score"]
)
@given(data=st.data())
def test_the_best_classes_or_pseudo_classes_are_retained(
    name: str, uneven: BetonIndex, images: BetonIndex, data: st.DataObject
) -> None:
    index = images if name == "keep_bytes" else uneven
    options: dict[str, Any] = {}
    groups, count = index.labels(), 10 if index is images else CLASSES
    if data.draw(st.booleans()):
        options["clusters"] = pseudo(8, len(index))
        groups, count = options["clusters"].labels, 8
    scores, inside = data.draw(drawn_scores(count)), set(range(len(index)))
    if data.draw(st.booleans()):
        within, share = data.draw(drawn_scores(len(index), "sample")), data.draw(KEEPS)
        options |= {"within": within, "keep_within": share}
        inside = best_of_each(within, groups.tolist(), share)
    weights = index.sample_bytes().tolist() if index is images else [1] * len(index)
    costs = [sum(weights[i] for i in inside if groups[i] == c) for c in range(count)]
    ranking = [c for c in ranked(scores) if costs[c]]
    value, retained = budget_by_hand(data, name, scores, ranking, costs)
    selection = select(scores, index, **{name: value}, **options)
    samples = [i for i in sorted(inside) if groups[i] in retained]
    assert selection.indices.tolist() == samples
    assert selection.classes.tolist() == np.unique(index.labels()[samples]).tolist()
    if "clusters" in options:
        assert selection.provenance["clusters"]["retained"] == sorted(retained)
    else:
        assert len(selection.label_map) == count


@pytest.mark.parametrize("name", ["keep", "keep_samples", "keep_bytes", "min_score"])
@given(scores=drawn_scores(120, "sample"), data=st.data())
def test_the_best_samples_are_retained(
    name: str, images: BetonIndex, scores: Scores, data: st.DataObject
) -> None:
    costs = images.sample_bytes().tolist() if name == "keep_bytes" else [1] * 120
    value, retained = budget_by_hand(data, name, scores, ranked(scores), costs)
    selection = select(scores, images, **{name: value})
    assert selection.indices.tolist() == sorted(retained)
    assert selection.classes.tolist() == np.unique(images.labels()[selection.indices]).tolist()


def test_bytes_may_be_text(images: BetonIndex) -> None:
    scores = random_scores(120, seed=0, unit="sample")
    selection = select(scores, images, keep_bytes="0.1 MiB")
    assert selection.provenance["keep_bytes"] == 104_857
    assert selection.digest() == select(scores, images, keep_bytes=104_857).digest()


@given(drawn_scores(SAMPLES, "sample"), KEEPS)
def test_balanced_keeps_that_share_of_every_class_or_pseudo_class(
    uneven: BetonIndex, scores: Scores, keep: float
) -> None:
    selection = select(scores, uneven, keep=keep, balanced=True)
    expected = best_of_each(scores, uneven.labels().tolist(), keep)
    assert selection.indices.tolist() == sorted(expected)
    assert selection.classes.tolist() == np.unique(uneven.labels()).tolist()
    groups = pseudo(5)
    selection = select(scores, uneven, keep=keep, balanced=True, clusters=groups)
    assert selection.indices.tolist() == sorted(best_of_each(scores, groups.labels.tolist(), keep))


def test_samples_of_a_source_without_labels_are_selected(tmp_path: Path) -> None:
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


def test_a_selection_records_its_options(uneven: BetonIndex, tmp_path: Path) -> None:
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


# Inputs.


def test_scores_clusters_and_beton_may_be_paths(uneven: BetonIndex, tmp_path: Path) -> None:
    clusters, scores = pseudo(8), random_scores(8, seed=4)
    for name, part in (("c", clusters), ("s", scores), ("w", SAMPLE_SCORES)):
        part.save(tmp_path / f"{name}.npz")
    options: dict[str, Any] = {"keep_samples": 20, "keep_within": 0.5}
    expected = select(scores, uneven, within=SAMPLE_SCORES, clusters=clusters, **options)
    found = select(
        tmp_path / "s.npz",
        uneven.path,
        within=tmp_path / "w.npz",
        clusters=str(tmp_path / "c.npz"),
        out=tmp_path / "out.npz",
        **options,
    )
    for one in (found, Selection.load(tmp_path / "out.npz")):
        assert one.digest() == expected.digest()
        assert one.provenance == expected.provenance


@pytest.mark.parametrize("how", ["sum", "max", "rank", "round-robin"])
@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_several_scores_are_combined(
    how: Any, weights: tuple[float, ...], uneven: BetonIndex, tmp_path: Path
) -> None:
    one, other = (random_scores(CLASSES, seed=seed) for seed in (1, 2))
    other.save(tmp_path / "other.npz")
    combined = combine_scores([one, other], combine=how, weights=weights or None)
    given_scores = [one, tmp_path / "other.npz"]
    found = select(given_scores, uneven, keep=0.3, combine=how, weights=weights)
    expected = select(combined, uneven, keep=0.3)
    assert found.digest() == expected.digest()
    assert found.provenance == expected.provenance


# Single rules.


def test_decimal_fractions_are_rounded_exactly(hundred: BetonIndex) -> None:
    scores = random_scores(100, seed=0, unit="sample")
    assert 0.145 * 100 < 14.5
    for keep in (0.145, 0.285, 0.555, 0.565, 0.575):
        found = len(select(scores, hundred, keep=keep))
        assert found == part_of(keep, 100) == round(100 * keep + 0.1)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            [0.0, 0.0],
            r"cover 14 .* has 12\. The scores from class 12 on, 0\.0%",
        ),
        ([0.0, 0.5], r"from class 12 on, 0\.8% of all, are ignored"),
        ([1.0, 0.0], None),
        ([-1.0, 0.0], None),
    ],
)
def test_outputs_that_stand_for_no_class_are_ignored_if_they_have_no_votes(
    others: list[float], message: str | None, uneven: BetonIndex
) -> None:
    own = [0, 3, 0, 20, 1, 9, 0, 5, 4, 8, 15, 0]
    scores = Scores(scores=np.array([*own, *others]), method="label_mapping")
    if message is None:
        with pytest.raises(ValueError, match=r"has 12 classes, but `scores` cover 14"):
            select(scores, uneven, keep_classes=3)
        return
    with pytest.warns(UserWarning, match=message):
        selection = select(scores, uneven, keep_classes=3)
    assert selection.classes.tolist() == [3, 5, 10]
    assert len(selection.label_map) == 12


NAMES = tuple(f"class {number}" for number in range(CLASSES))
SWAPPED = (*NAMES[:3], NAMES[4], NAMES[3], *NAMES[5:])
OTHER_NAME = (
    r"^class 3 is 'class 4' in the surrogate of `{}`, but 'class 3' in .*uneven\.beton'\. Score"
)


def named(scores: Scores, names: tuple[str, ...]) -> Scores:
    return replace(scores, class_names=names)


@pytest.mark.parametrize(
    ("scores", "name", "options"),
    [
        (CLASS_SCORES, "scores", {"keep": 0.5}),
        (SAMPLE_SCORES, "scores", {"keep": 0.5}),
        (SAMPLE_SCORES, "scores", {"keep": 0.5, "balanced": True, "clusters": pseudo(12)}),
        (SAMPLE_SCORES, "within", {"keep": 0.5, "keep_within": 0.5}),
    ],
    ids=["classes", "samples", "balanced samples", "within"],
)
def test_scores_of_classes_in_another_order_are_refused(
    scores: Scores, name: str, options: dict[str, Any], uneven: BetonIndex, tmp_path: Path
) -> None:
    others = {"scores": CLASS_SCORES} if name == "within" else {}

    def chosen(names: tuple[str, ...]) -> str:
        return select(beton=uneven, **{**others, name: named(scores, names)}, **options).digest()

    expected = chosen(())
    assert chosen(NAMES) == expected
    with pytest.raises(StaleArtifactError, match=OTHER_NAME.format(name)):
        chosen(SWAPPED)
    bare = Path(copy(uneven.path, tmp_path))  # without its manifest
    assert not BetonIndex.open(bare).class_names()
    given = {**others, name: named(scores, SWAPPED)}
    assert select(beton=bare, **given, **options).indices.size


def test_names_of_outputs_that_stand_for_no_class_are_not_compared(uneven: BetonIndex) -> None:
    scores = scores_of([*range(1, 13), 0.0, 0.0], method="label_mapping")
    with pytest.warns(UserWarning, match="are ignored"):
        found = select(named(scores, (*NAMES, "x", "y")), uneven, keep_classes=2)
    assert found.classes.tolist() == [9, 10]
    with pytest.raises(StaleArtifactError, match=OTHER_NAME.format("scores")):
        select(named(scores, (*SWAPPED, "x", "y")), uneven, keep_classes=2)


def test_names_of_pseudo_classes_are_not_compared(uneven: BetonIndex) -> None:
    scores = named(CLASS_SCORES, SWAPPED)
    assert select(scores, uneven, keep=0.5, clusters=pseudo(12)).indices.size


def test_scores_may_cover_more_classes_than_a_beton_without_names(hundred: BetonIndex) -> None:
    selection = select(scores_of(np.arange(3)), hundred, keep_classes=1)
    assert selection.classes.tolist() == [0]
    assert selection.label_map.tolist() == [0, -1, -1]


def test_another_field_may_hold_the_class_ids(uneven: BetonIndex) -> None:
    selection = select(scores_of(np.arange(12)), uneven, keep_classes=2, label_field="other")
    assert selection.label_field == "other"
    assert selection.classes.tolist() == [5, 6]
    assert selection.indices.tolist() == list(range(25, 34))


# Bad input.


STRANGE = {"source_fingerprint": "0123456789abcdef0"}
OTHER_SAMPLES = random_scores(33, unit="sample")
OF_PSEUDO_CLASSES = scores_of(np.ones(CLASSES), clusters_sha256="ab")


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (CLASS_SCORES, {"keep": 1.5}, ValueError, r"^`keep` must be a fraction in \(0, 1\]"),
        (CLASS_SCORES, {"keep_classes": 0}, ValueError, "^`keep_classes` must be at least 1"),
        (CLASS_SCORES, {"keep_classes": 10}, ValueError, r"^`keep_classes` must be in \[1, 9\]"),
        (CLASS_SCORES, {"keep_samples": 35}, ValueError, r"^`keep_samples` must be in \[1, 34\]"),
        (CLASS_SCORES, {"keep_bytes": "5 XB"}, ValueError, "^`keep_bytes` must be bytes, or text"),
        (scores_of(np.eye(12)[3]), {"keep_samples": 8}, ValueError, "best class takes 9 samples"),
        (CLASS_SCORES, {"min_score": 2}, ValueError, "^`min_score` is 2.0, but the best class has"),
        (CLASS_SCORES, {"min_score": np.nan}, ValueError, "^`min_score` must be finite; got nan"),
        (CLASS_SCORES, {"min_score": -np.inf}, ValueError, "^`min_score` must be finite; got -inf"),
        (CLASS_SCORES, {"keep": None}, ValueError, "exactly one of .*; got none"),
        (CLASS_SCORES, {"keep": 1, "keep_bytes": 2}, ValueError, "got `keep` and `keep_bytes`"),
        (SAMPLE_SCORES, {"keep_classes": 3}, ValueError, "^`keep_classes` needs class scores"),
        (random_scores(11), {}, ValueError, "has 12 classes, .* cover 11"),
        (random_scores(13), {}, ValueError, "has 12 classes, .* cover 13"),
        (OTHER_SAMPLES, {}, ValueError, "has 34 samples, but `scores` covers 33"),
        (CLASS_SCORES, {"within": SAMPLE_SCORES}, ValueError, "^`within` and `keep_within` go tog"),
        (CLASS_SCORES, {"keep_within": 0.5}, ValueError, "^`within` and `keep_within` go together"),
        (
            CLASS_SCORES, {"within": CLASS_SCORES, "keep_within": 0.5}, ValueError,
            "^`scores` must be class scores .*; got class scores and class scores",
        ),
        (
            SAMPLE_SCORES, {"within": SAMPLE_SCORES, "keep_within": 0.5}, ValueError,
            "^`scores` must be class scores .*; got sample scores and sample scores",
        ),
        (
            CLASS_SCORES, {"within": SAMPLE_SCORES, "keep_within": 0.0}, ValueError,
            "^`keep_within` must be a fraction",
        ),
        (
            CLASS_SCORES, {"within": OTHER_SAMPLES, "keep_within": 1}, ValueError,
            "has 34 samples, but `within` covers 33",
        ),
        (CLASS_SCORES, {"balanced": True}, ValueError, "^`balanced` needs sample sc"),
        (SAMPLE_SCORES, {"keep_bytes": 9, "balanced": True}, ValueError, "`balanced` needs `keep`"),
        (SAMPLE_SCORES, {"clusters": pseudo(8)}, ValueError, "`clusters` have no effect"),
        (CLASS_SCORES, {"clusters": pseudo(12, 33)}, ValueError, "34 .* `clusters` covers 33"),
        (CLASS_SCORES, {"clusters": pseudo(8)}, ValueError, "8 pseudo-classes, but .* cover 12"),
        (OF_PSEUDO_CLASSES, {}, ValueError, "are for pseudo-classes. Pass .*`clusters`"),
        (OF_PSEUDO_CLASSES, {"clusters": pseudo(12)}, StaleArtifactError, "other clusters"),
        (CLASS_SCORES, {"clusters": pseudo(12, **STRANGE)}, StaleArtifactError, "^`clusters` was"),
        (
            CLASS_SCORES,
            {"within": scores_of(np.ones(SAMPLES), unit="sample", **STRANGE), "keep_within": 1},
            StaleArtifactError, "^`within` was made for another beton",
        ),
        (scores_of(np.ones(CLASSES), **STRANGE), {}, StaleArtifactError, "^`scores` was made for"),
        (CLASS_SCORES, {"label_field": "y"}, ValueError, "has no field 'y'"),
    ],
)  # fmt: skip
def test_bad_input_is_rejected(
    scores: Scores, options: Any, error: type[Exception], message: str, uneven: BetonIndex
) -> None:
    budgets = {"keep", "keep_classes", "keep_samples", "keep_bytes", "min_score"}
    budget = {} if budgets & set(options) else {"keep": 1}
    with pytest.raises(error, match=message):
        select(scores, uneven, **budget, **options)


@pytest.mark.parametrize(("unit", "count"), [("class", 10), ("sample", 120)])
def test_bytes_below_the_best_are_rejected(unit: Any, count: int, images: BetonIndex) -> None:
    scores = random_scores(count, seed=0, unit=unit)
    best = scores.ranking()[0]
    ids = members(images, [best]) if unit == "class" else [best]
    least = int(images.sample_bytes()[ids].sum())
    with pytest.raises(ValueError, match=rf"^`keep_bytes` is .*best {unit} takes {least} bytes"):
        select(scores, images, keep_bytes=least - 1)
    assert select(scores, images, keep_bytes=least).indices.tolist() == ids
