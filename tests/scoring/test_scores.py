"""`Scores`: the one order that they define, and their file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import Scores, Selection

FEW = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 3.0])
ROWS = st.lists(st.tuples(FEW, FEW), min_size=1, max_size=40)


def scores_of(rows: list[tuple[float, float]]) -> Scores:
    scores, tie = (np.array(part) for part in zip(*rows, strict=True))
    return Scores(scores=scores, tie=tie, method="drawn")


@given(ROWS)
def test_the_ranking_is_by_score_then_tie_key_then_id(rows: list[tuple[float, float]]) -> None:
    expected = sorted(range(len(rows)), key=lambda i: (-rows[i][0], -rows[i][1], i))
    ranking = scores_of(rows).ranking()
    assert ranking.dtype == np.int64
    assert ranking.tolist() == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 0), (2, 0), (3, 0)], [2, 1, 0]),
        ([(1, 0), (1, 2), (1, 1)], [1, 2, 0]),
        ([(1, 1), (1, 1), (1, 1)], [0, 1, 2]),
        ([(0, 9), (1, 0), (0, 9), (1, 0)], [1, 3, 0, 2]),
        ([(0.0, 1), (-0.0, 1), (0.0, 2)], [2, 0, 1]),
        ([(1e300, 0), (-1e300, 0), (5e-324, 0), (0, 0)], [0, 2, 3, 1]),
        ([(7, 7)], [0]),
    ],
    ids=["no ties", "tie keys", "ids", "both", "signed zeros", "extremes", "one"],
)
def test_ties_of_every_kind_are_decided(rows: Any, expected: list[int]) -> None:
    assert scores_of(rows).ranking().tolist() == expected


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    scores = Scores(
        scores=np.array([0.1, 5e-324, 2.0]), tie=np.array([1 / 3, 0.0, -1.0]),
        method="lm", unit="sample", provenance={"target": {"arch": "resnet18"}, "none": None},
    )  # fmt: skip
    scores.save(tmp_path / "deep" / "s.npz")
    loaded = Scores.load(str(tmp_path / "deep" / "s.npz"))
    assert loaded.scores.tobytes() == scores.scores.tobytes()
    assert loaded.tie.tobytes() == scores.tie.tobytes()
    assert (loaded.method, loaded.unit) == ("lm", "sample")
    assert loaded.provenance == scores.provenance


def test_scores_of_any_number_type_are_kept_as_float64() -> None:
    scores = Scores(scores=[3, 1, 2], tie=np.zeros(3, np.float16), method="x")  # type: ignore[arg-type]  # lists do, too
    assert scores.scores.dtype == scores.tie.dtype == np.float64
    assert scores.ranking().tolist() == [0, 2, 1]


def test_scores_cannot_be_changed_afterwards() -> None:
    given_scores = np.array([1.0, 2.0])
    scores = Scores(scores=given_scores, tie=given_scores, method="x")
    given_scores[:] = 0
    assert scores.scores.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        scores.scores[0] = 5


@pytest.mark.parametrize(
    "values",
    [[1.0, np.nan], [np.inf, 0.0], [-np.inf, 0.0], [], [[1.0], [2.0]], 3.0],
    ids=str,
)
@pytest.mark.parametrize("name", ["scores", "tie"])
def test_values_of_another_form_are_refused(name: str, values: Any) -> None:
    parts = {"scores": np.ones(2), "tie": np.ones(2), name: np.array(values)}
    with pytest.raises(
        ValueError, match=rf"^`{name}` must be finite, with shape \(C,\) and C >= 1"
    ):
        Scores(method="x", **parts)


def test_a_tie_key_for_every_score_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"^`tie` must have the shape of `scores` \(3,\); got \(2,\)"
    ):
        Scores(scores=np.ones(3), tie=np.ones(2), method="x")


def test_another_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^`unit` must be class or sample; got 'pixel'"):
        Scores(scores=np.ones(3), tie=np.ones(3), method="x", unit="pixel")  # type: ignore[arg-type]  # wrong on purpose


def test_a_file_of_another_kind_is_refused(photos: Any, tmp_path: Path) -> None:
    Selection.of_classes(photos.index, [1]).save(tmp_path / "s.npz")
    with pytest.raises(ValueError, match=r"is a selection file; a scores file is needed"):
        Scores.load(tmp_path / "s.npz")


def test_scores_say_in_short_what_they_are() -> None:
    scores = Scores(scores=np.arange(9.0), tie=np.zeros(9), method="lm")
    assert repr(scores) == "Scores(lm, 9 x class, best=[8, 7, 6, 5, 4, ...])"
    assert len(scores) == 9
