"""`mean_scores` and `combine_scores` against their formulas, class by class."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dp4tl_ffcv import Scores, StaleArtifactError
from dp4tl_ffcv.scoring.combine import combine_scores, mean_scores
from tests.support.scores import drawn_scores, scores_of

HOWS = ["sum", "max", "rank", "round-robin"]
FEW = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.5])  # few values, so that many are equal
WEIGHTS = st.sampled_from([1.0, 2.0, 3.0, 0.5])
ONE = scores_of([1.0, 2.0])


@st.composite
def targets(draw: st.DrawFn) -> tuple[list[Scores], list[float]]:
    """Scores of one to four targets, and their weights."""
    count, classes = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    parts = [draw(drawn_scores(classes, values=FEW)) for _ in range(count)]
    return parts, draw(st.lists(WEIGHTS, min_size=count, max_size=count))


def scaled(values: Any) -> list[float]:
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


def ranks_by_hand(*keys: Any) -> list[float]:
    """Count the entries before each entry, and half of the other equal entries."""
    entries = list(zip(*keys, strict=True))
    return [
        sum(other > entry for other in entries) + (entries.count(entry) - 1) / 2
        for entry in entries
    ]


def combined_by_hand(columns: list[list[float]], weights: list[float], how: str) -> list[float]:
    shares = [weight / sum(weights) for weight in weights]
    join = max if how == "max" else sum
    return [
        join(share * column[c] for share, column in zip(shares, columns, strict=True))
        for c in range(len(columns[0]))
    ]


# The mean over runs.


@given(targets())
def test_mean_scores_average_each_entry(problem: tuple[list[Scores], Any]) -> None:
    runs, _ = problem
    mean = mean_scores(runs)
    np.testing.assert_allclose(mean.scores, np.mean([one.scores for one in runs], axis=0))
    np.testing.assert_allclose(mean.tie_break, np.mean([one.tie_break for one in runs], axis=0))
    assert (mean.method, mean.unit) == ("x", "class")
    assert set(mean.provenance) <= {"parts"}


def test_the_mean_records_the_provenance_of_each_run() -> None:
    made_for = {"source_fingerprint": "ab", "clusters_sha256": "12"}
    runs = [scores_of([k, 1.0], method="grand", unit="sample", **made_for) for k in range(2)]
    mean = mean_scores(runs)
    assert (mean.method, mean.unit, mean.scores.tolist()) == ("grand", "sample", [0.5, 1.0])
    assert mean.provenance == {"parts": [{"method": "grand", "scores": made_for}] * 2, **made_for}


def test_an_average_needs_one_method() -> None:
    with pytest.raises(ValueError, match=r"^`scores` come from the methods x and y"):
        mean_scores([scores_of([1.0]), scores_of([1.0], method="y")])


# Several targets.


@pytest.mark.parametrize("how", ["sum", "max"])
@given(problem=targets())
def test_sum_and_max_follow_their_formulas(how: Any, problem: tuple[Any, list[float]]) -> None:
    parts, weights = problem
    assume(all(part.scores.any() for part in parts))
    made = combine_scores(parts, combine=how, weights=weights)
    for name in ("scores", "tie_break"):
        columns = [scaled(getattr(part, name).tolist()) for part in parts]
        expected = combined_by_hand(columns, weights, how)
        np.testing.assert_allclose(getattr(made, name), expected, atol=1e-15)


@given(targets())
def test_rank_averages_positions(problem: tuple[list[Scores], list[float]]) -> None:
    parts, weights = problem
    made = combine_scores(parts, combine="rank", weights=weights)
    positions = [ranks_by_hand(part.scores, part.tie_break) for part in parts]
    expected = combined_by_hand(positions, weights, "rank")
    np.testing.assert_allclose(-made.scores, expected, atol=1e-12)
    keys = [ranks_by_hand(part.tie_break) for part in parts]
    np.testing.assert_allclose(-made.tie_break, combined_by_hand(keys, weights, "rank"), atol=1e-12)


@given(targets())
def test_round_robin_adds_the_best_unseen_class_of_the_target_that_is_due(
    problem: tuple[list[Scores], list[float]],
) -> None:
    parts, weights = problem
    lists = [part.ranking().tolist() for part in parts]
    taken = [0] * len(parts)
    order: list[int] = []
    while len(order) < len(parts[0]):
        t = min(range(len(parts)), key=lambda t: ((taken[t] + 1) / weights[t], t))
        taken[t] += 1
        order.append(next(c for c in lists[t] if c not in order))
    made = combine_scores(parts, combine="round-robin", weights=weights)
    assert made.ranking().tolist() == order
    assert made.scores[order].tolist() == list(range(len(order), 0, -1))


@pytest.mark.parametrize("how", HOWS)
@given(problem=targets())
def test_one_target_keeps_its_ranking(how: Any, problem: tuple[list[Scores], Any]) -> None:
    part = problem[0][0]
    assume(part.scores.any())
    assert combine_scores([part], combine=how).ranking().tolist() == part.ranking().tolist()


def test_the_provenance_of_each_target_is_recorded() -> None:
    parts = [
        scores_of([1.0, 2.0], target="pets", source_fingerprint="ab", clusters_sha256="12"),
        scores_of([1.0, 0.0], method="y", target="cars", clusters_sha256="12"),
    ]
    made = combine_scores(parts, combine="rank", weights=[1, 3])
    assert made.method == "rank_x_y"
    assert made.provenance == {
        "parts": [{"method": part.method, "scores": dict(part.provenance)} for part in parts],
        "source_fingerprint": "ab",
        "clusters_sha256": "12",
        "how": "rank",
        "weights": [0.25, 0.75],
    }


@pytest.mark.parametrize("scale", [0.1, 0.7, 1e-3, 7e5, 1e300])
@pytest.mark.parametrize("weights", [[1, 3], [2, 3, 5], [1, 1, 49], [1, 1000]])
def test_turns_do_not_depend_on_the_scale_of_the_weights(scale: float, weights: list[int]) -> None:
    rng = np.random.default_rng(0)
    parts = [scores_of(rng.permutation(400)) for _ in weights]
    plain, other = (
        combine_scores(
            parts, combine="round-robin", weights=[number * weight for weight in weights]
        )
        for number in (1, scale)
    )
    assert plain.ranking().tolist() == other.ranking().tolist()


@pytest.mark.parametrize("how", HOWS)
def test_huge_weights_and_scores_do_not_overflow(how: Any) -> None:
    parts = [scores_of([1.5e308, 1.5e308, 0.0]), scores_of([0.0, 1.0, 4.0])]
    huge, plain = (
        combine_scores(parts, combine=how, weights=w) for w in ([1.2e308, 1.2e308], [1, 1])
    )
    assert np.isfinite(huge.scores).all()
    assert huge.scores.tolist() == plain.scores.tolist()
    assert huge.provenance["weights"] == [0.5, 0.5]


@pytest.mark.parametrize("join", [mean_scores, combine_scores])
@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("", "ab", ""), "ab"),
        (("ab", "ab"), "ab"),
        (("", ""), ""),
        (("ab", "", "ba"), "class 0 is 'a' in one of `scores`, but 'b' in another. Score the same"),
    ],
)
def test_class_names_must_agree_and_are_kept(join: Any, names: tuple[str, ...], kept: str) -> None:
    parts = [replace(ONE, class_names=tuple(each)) for each in names]
    if len(kept) <= 2:
        assert join(parts).class_names == tuple(kept)
        return
    with pytest.raises(StaleArtifactError, match=f"^{kept}"):
        join(parts)


def test_the_longest_names_of_sample_scores_are_kept() -> None:
    parts = [
        replace(scores_of([1.0], unit="sample"), class_names=tuple(each)) for each in ("ab", "abc")
    ]
    assert mean_scores(parts).class_names == ("a", "b", "c")


# Bad input.


@pytest.mark.parametrize("join", [mean_scores, combine_scores])
@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([], ValueError, "^`scores` is empty"),
        ((one for one in (ONE, ONE)), TypeError, "^`scores` must be a list of Scores; got <gener"),
        ([ONE, "scores.npz"], TypeError, "^`scores` must be a list of Scores; got .*'scores.npz'"),
        ([ONE, scores_of([1, 2], unit="sample")], ValueError, "units, class and sample"),
        ([ONE, scores_of([1, 2, 3])], ValueError, "lengths, 2 and 3"),
        (
            [scores_of([1], source_fingerprint=c * 64) for c in "ab"],
            StaleArtifactError, "different sources",
        ),
        (
            [scores_of([1], clusters_sha256=c * 64) for c in "ab"],
            StaleArtifactError, "different clusters",
        ),
        (
            [scores_of([1], clusters_sha256="a" * 64), scores_of([1])],
            StaleArtifactError, "different clusters",
        ),
    ],
)  # fmt: skip
def test_scores_of_different_things_are_rejected(
    join: Any, scores: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        join(scores)


@pytest.mark.parametrize("how", ["sum", "max"])
@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (scores_of([0.0, 0.0]), "0 to 0"),
        (scores_of([2.0, -1.0]), "-1 to 2"),
        (scores_of([1.0, 1.0], [0.0, -1.0]), "-1 to 0"),
    ],
    ids=["all 0", "negative", "negative tie-break"],
)
def test_shares_of_negative_scores_are_rejected(how: Any, wrong: Scores, what: str) -> None:
    with pytest.raises(ValueError, match=f"^'{how}' needs scores >= 0 .*; got values from {what}"):
        combine_scores([ONE, wrong], combine=how)
    for other in ("rank", "round-robin"):
        combine_scores([ONE, wrong], combine=other)


@pytest.mark.parametrize(
    "weights",
    [
        [1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], 3.0, [], "ab", [[1.0], [1.0, 2.0]],
        [1.0, math.inf], [1e308, 1e-300],
    ],
)  # fmt: skip
def test_bad_weights_are_rejected(weights: Any) -> None:
    with pytest.raises(ValueError, match=r"^`weights` must hold a number above 0, and not neg"):
        combine_scores([ONE] * 2, weights=weights)


def test_an_unknown_rule_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^`combine` must be one of .*; got 'union'"):
        combine_scores([ONE], combine="union")  # type: ignore[arg-type]
