"""Sample scores against their formulas, and coverage-centric selection against its budget."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from dp4tl_ffcv.scoring import coverage_centric, el2n, moderate, prototype_distance
from tests.support.scores import clusters_of, scores_of
from tests.support.threads import use_threads

DTYPES = [np.float16, np.float32, np.float64]
NUMBERS = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 1.5])


@st.composite
def samples(draw: st.DrawFn) -> tuple[Any, list[int], int]:
    """Features, labels and the number of classes."""
    num_classes, depth = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=15))
    size = len(labels) * depth
    flat = draw(st.lists(NUMBERS, min_size=size, max_size=size))
    dtype = draw(st.sampled_from(DTYPES))
    return np.array(flat, dtype=dtype).reshape(len(labels), depth), labels, num_classes


def many(dtype: Any = np.float32, rows: int = 500, width: int = 12) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(rows, width)).astype(dtype), rng.integers(0, width, rows)
    return features, labels


moderate_classes = partial(moderate, unit="class")
of_samples = partial(scores_of, unit="sample", method="el2n")


# EL2N.


def el2n_by_hand(row: list[float], label: int) -> float:
    exps = [math.exp(value - max(row)) for value in row]
    errors = [e / sum(exps) - (c == label) for c, e in enumerate(exps)]
    return math.sqrt(sum(error**2 for error in errors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_el2n_is_the_norm_of_the_error(dtype: Any) -> None:
    logits, labels = many(dtype)
    scores = el2n(logits, labels)
    expected = [
        el2n_by_hand(row, label)
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-12)
    assert (scores.method, scores.unit, scores.provenance) == ("el2n", "sample", {})
    assert not scores.tie_break.any()


def test_el2n_ranks_the_hardest_first_even_among_confident_predictions() -> None:
    logits = np.array([[0, 50, 0], [0, 60, 0], [50, 0, 0], [0, 0, 0]], np.float32)
    scores = el2n(logits, [1, 1, 1, 1])
    assert scores.ranking().tolist() == [2, 3, 0, 1]
    # Both others have exp(-50): the error is (-2, 1, 1) times that.
    np.testing.assert_allclose(scores.scores[0], math.sqrt(6) * math.exp(-50), rtol=1e-12)
    assert scores.scores[2] == pytest.approx(math.sqrt(2))


def test_el2n_accepts_large_logits() -> None:
    large = np.array([[1e308, -1e308], [3e4, -3e4]])
    assert el2n(large, [0, 1]).scores.tolist() == pytest.approx([0.0, math.sqrt(2)])


# Moderate.


def distances_by_hand(features: Any, labels: list[int]) -> list[float]:
    rows = features.astype(float).tolist()
    centres = {}
    for label in set(labels):
        members = [row for row, other in zip(rows, labels, strict=True) if other == label]
        centres[label] = [sum(column) / len(members) for column in zip(*members, strict=True)]
    return [math.dist(row, centres[label]) for row, label in zip(rows, labels, strict=True)]


def median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


@pytest.mark.parametrize("over", ["class", "all"])
@given(samples())
def test_moderate_compares_distances_to_the_median(
    over: Any, problem: tuple[Any, list[int], int]
) -> None:
    features, labels, num_classes = problem
    scores = moderate(features, labels, num_classes, median=over)
    distances = distances_by_hand(features, labels)
    pairs = list(zip(distances, labels, strict=True))
    for n, (distance, label) in enumerate(pairs):
        compared = [d for d, other in pairs if over == "all" or other == label]
        assert scores.scores[n] == pytest.approx(-abs(distance - median(compared)), abs=1e-12)
    assert (scores.method, scores.unit, scores.provenance) == (
        "moderate",
        "sample",
        {"median": over},
    )


@given(samples())
def test_moderate_of_classes_scores_their_means_as_samples_of_one_class(
    problem: tuple[Any, list[int], int],
) -> None:
    features, labels, num_classes = problem
    scores = moderate_classes(features, labels, num_classes)
    present = sorted(set(labels))
    means = np.array(
        [features[np.array(labels) == label].astype(float).mean(axis=0) for label in present]
    )
    distances = distances_by_hand(means, [0] * len(present))
    expected = [-abs(distance - median(distances)) for distance in distances]
    np.testing.assert_allclose(scores.scores[present], expected, atol=1e-12)
    assert (len(scores), scores.method, scores.unit) == (num_classes, "moderate", "class")
    absent = [c for c in range(num_classes) if c not in present]
    assert scores.ranking()[len(present) :].tolist() == absent


# Coverage-centric coresets.


def budget_of(sizes: list[int], number: int) -> list[int]:
    """Divide a budget as the paper does: each stratum in turn, smallest first, gets its share."""
    budget, left = [0] * len(sizes), number
    order = sorted(range(len(sizes)), key=lambda stratum: (sizes[stratum], stratum))
    for done, stratum in enumerate(order):
        budget[stratum] = min(sizes[stratum], left // (len(sizes) - done))
        left -= budget[stratum]
    return budget


def strata_by_hand(difficulty: list[float], ids: list[int], strata: int) -> list[list[int]]:
    low, high = min(difficulty[i] for i in ids), max(difficulty[i] for i in ids)
    found: list[list[int]] = [[] for _ in range(strata)]
    for i in ids:
        place = int((difficulty[i] - low) / (high - low) * strata) if high > low else 0
        found[min(place, strata - 1)].append(i)
    return found


@given(
    # With quarters and powers of two, the edges of the strata are exact.
    st.lists(st.integers(-6, 10), min_size=1, max_size=40),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 100),
)
def test_the_first_samples_are_the_budget_of_each_stratum_for_any_number(
    quarters: list[int], strata: int, cutoff: float, seed: int
) -> None:
    difficulty = [quarter / 4 for quarter in quarters]
    ranking = coverage_centric(
        of_samples(difficulty), strata=strata, cutoff=cutoff, seed=seed
    ).ranking().tolist()  # fmt: skip
    assert sorted(ranking) == list(range(len(difficulty)))
    hard = sorted(range(len(difficulty)), key=lambda i: (-difficulty[i], i))
    hard = hard[: math.floor(round(cutoff * len(difficulty), 6))]
    rest = [i for i in range(len(difficulty)) if i not in hard]
    assert ranking[len(rest) :] == hard[::-1]
    found = strata_by_hand(difficulty, rest, strata)
    for number in range(1, len(rest) + 1):
        chosen = set(ranking[:number])
        counts = [len(chosen & set(stratum)) for stratum in found]
        assert counts == budget_of(list(map(len, found)), number)


def test_each_stratum_is_shuffled_by_the_seed() -> None:
    difficulty = of_samples([0.0] * 60 + [1.0] * 60)
    one, same, other = (coverage_centric(difficulty, seed=seed).ranking() for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    first_turns = {int(coverage_centric(difficulty, seed=seed).ranking()[0]) for seed in range(300)}
    # The harder of two equal strata comes first. A fair shuffle leaves out each of its 60 samples
    # with a probability below 1 %.
    assert first_turns <= set(range(60, 120))
    assert len(first_turns) > 55


def test_equal_difficulties_are_one_stratum_and_wide_ranges_do_not_overflow() -> None:
    assert sorted(coverage_centric(of_samples([2.0] * 9)).ranking().tolist()) == list(range(9))
    wide = coverage_centric(of_samples([-1.7e308, 1.7e308, 0.0, 1e300]), strata=2).ranking()
    assert set(wide[:2].tolist()) & {0}
    assert sorted(wide.tolist()) == [0, 1, 2, 3]


def test_coverage_centric_records_the_provenance_of_the_difficulty() -> None:
    difficulty = of_samples([1.0, 2.0], source_fingerprint="ab", run=3)
    scores = coverage_centric(difficulty, strata=3, cutoff=0.5, seed=4)
    assert (scores.method, scores.unit) == ("coverage_centric", "sample")
    assert scores.provenance == {
        "strata": 3, "cutoff": 0.5, "seed": 4, "source_fingerprint": "ab",
        "difficulty": {"method": "el2n", "scores": {"source_fingerprint": "ab", "run": 3}},
    }  # fmt: skip


# Prototypes.


@pytest.mark.parametrize("dtype", DTYPES)
def test_prototypes_are_the_distance_to_the_nearest_centroid(dtype: Any) -> None:
    features, _ = many(dtype)
    centroids = np.random.default_rng(1).normal(size=(9, 12)).astype(np.float32)
    clusters = clusters_of(np.zeros(500, int), centroids)
    far, near = (prototype_distance(features, clusters, prefer=p) for p in ("far", "near"))
    expected = [
        min(math.dist(row, centre) for centre in centroids.tolist()) for row in features.tolist()
    ]
    np.testing.assert_allclose(far.scores, expected, rtol=1e-12)
    assert near.scores.tolist() == (-far.scores).tolist()
    assert (far.method, far.unit) == ("prototype_distance", "sample")


def test_prototypes_record_the_provenance_of_the_clusters() -> None:
    clusters = clusters_of([0, 0], [[0.0]], source_fingerprint="ab")
    scores = prototype_distance(np.ones((2, 1)), clusters, prefer="near")
    assert scores.provenance == {
        "prefer": "near", "source_fingerprint": "ab",
        "clusters": {
            "num_clusters": 1, "sha256": clusters.digest(),
            "provenance": {"source_fingerprint": "ab"},
        },
    }  # fmt: skip


# All methods: memory maps, threads and bad input.


def bits(features: Any, labels: Any) -> list[bytes]:
    clusters = clusters_of(np.zeros(len(features), int), np.eye(12)[:5])
    made = (
        el2n(features, labels),
        moderate(features, labels, 12),
        moderate_classes(features, labels, 12),
        prototype_distance(features, clusters),
    )
    return [scores.scores.tobytes() for scores in made]


def test_memory_maps_give_the_same_bits_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = many(np.float16, rows=100)
    expected = bits(features, labels)
    np.save(tmp_path / "features.npy", features)
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    monkeypatch.setattr("dp4tl_ffcv.scoring.inputs._BLOCK_BYTES", 8 * 12 * 7)
    assert bits(stored, labels) == expected


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = many(rows=5000)
    found = []
    for threads in (1, 2, 4):
        use_threads(monkeypatch, threads)
        with threadpool_limits(threads):
            found.append(bits(features, labels))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("score", [moderate, moderate_classes, el2n])
@pytest.mark.parametrize(
    ("values", "labels", "error", "message"),
    [
        (np.zeros((0, 2)), [], ValueError, "must have at least one row; got none"),
        (np.zeros((2, 2)), [0], ValueError, "^`labels` must have one entry per row"),
        (np.zeros((2, 2)), [0, 2], ValueError, r"^`labels` must lie in \[0, 2\)"),
        (np.zeros((2, 2), int), [0, 1], TypeError, "must be float16, float32 or float64"),
        (np.zeros(2), [0, 1], ValueError, r"must have shape \(N, D\)"),
        *(
            (np.array([[0, value], [0, 0]]), [0, 1], ValueError, "must be finite")
            for value in (np.nan, np.inf, -np.inf)
        ),
    ],
)
def test_bad_arrays_are_rejected(
    score: Any, values: Any, labels: Any, error: type[Exception], message: str
) -> None:
    arguments = (values, labels) if score is el2n else (values, labels, 2)
    with pytest.raises(error, match=message):
        score(*arguments)


TWO, ZEROS = of_samples([1.0, 2.0]), np.zeros((2, 3))
CENTRES = clusters_of([0, 1], np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("score", "arguments", "options", "error", "message"),
    [
        (coverage_centric, [TWO], {"strata": 0}, ValueError, r"^`strata` must be in \[1, 1000000"),
        (coverage_centric, [TWO], {"strata": 10**13}, ValueError, "^`strata` must be in"),
        (coverage_centric, [TWO], {"seed": -1}, ValueError, "^`seed` must be at least 0; got -1"),
        *(
            (coverage_centric, [TWO], {"cutoff": cutoff}, ValueError, "^`cutoff` must be a frac")
            for cutoff in (1.0, -0.1, math.nan, "0.1")
        ),
        (coverage_centric, [scores_of([1])], {}, ValueError, "^`difficulty` must be sample sc"),
        (coverage_centric, [np.ones(3)], {}, ValueError, "^`difficulty` must be sample scores"),
        (moderate, [ZEROS, [0, 1], 2], {"median": "mean"}, ValueError, "^`median` must be one of"),
        (moderate, [ZEROS, [0, 1], 2], {"unit": "pixel"}, ValueError, "^`unit` must be one of"),
        (moderate_classes, [ZEROS, [0, 1], 2], {"median": "all"}, ValueError, "^`median` has no"),
        (moderate, [ZEROS], {}, ValueError, "^`labels` and `num_classes` are needed"),
        (moderate, [ZEROS, [0, 1]], {}, ValueError, "^`num_classes` is needed"),
        (moderate, [[[1e200], [-1e200]], [0, 0], 1], {}, ValueError, "squares overflow"),
        (el2n, [ZEROS], {}, ValueError, "^`labels` are needed with logits"),
        (prototype_distance, [np.zeros((5, 3)), CENTRES], {}, ValueError, "^`clusters` were"),
        (prototype_distance, [np.zeros((2, 2)), CENTRES], {}, ValueError, "^`clusters` were"),
        (prototype_distance, [ZEROS + np.nan, CENTRES], {}, ValueError, "finite"),
        (prototype_distance, [ZEROS, CENTRES], {"prefer": "mid"}, ValueError, "^`prefer` must be"),
    ],
)
def test_bad_options_are_rejected(
    score: Any, arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score(*arguments, **options)
