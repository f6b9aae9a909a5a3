"""`Scores`: the one order that they define, and their file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import Scores
from dp4tl_ffcv.artifacts import save_artifact
from tests.support.scores import drawn_scores, ranked, scores_of

FEW = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 3.0])


@given(st.integers(1, 40).flatmap(lambda count: drawn_scores(count, values=FEW)))
def test_the_ranking_is_by_score_then_tie_break_then_id(scores: Scores) -> None:
    assert scores.ranking().dtype == np.int64
    assert scores.ranking().tolist() == ranked(scores)


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    about = {"target": {"arch": "resnet18"}, "none": None}
    scores = scores_of([0.1, 5e-324, 2.0], [1 / 3, 0.0, -1.0], "el2n", "sample", **about)
    scores.save(tmp_path / "deep" / "s.npz")
    loaded = Scores.of(str(tmp_path / "deep" / "s.npz"))
    assert loaded.scores.tobytes() == scores.scores.tobytes()
    assert loaded.tie_break.tobytes() == scores.tie_break.tobytes()
    assert (loaded.method, loaded.unit) == ("el2n", "sample")
    assert loaded.provenance == about
    assert Scores.of(loaded) is loaded


def test_class_names_come_back_and_files_without_them_are_read(tmp_path: Path) -> None:
    path, names = tmp_path / "s.npz", ("cat", "dog")
    for unit, count in (("class", 2), ("sample", 5)):
        scores = Scores(scores=np.ones(count), method="x", unit=unit, class_names=list(names))  # type: ignore[arg-type]
        scores.save(path)
        assert Scores.load(path).class_names == scores.class_names == names
    facts = {"method": "x", "unit": "class", "provenance": {}}
    arrays = {"scores": np.ones(3), "tie_break": np.zeros(3)}
    save_artifact(path, "scores", arrays, facts)
    assert Scores.load(path).class_names == ()
    for wrong in (list(names), [1, 2, 3], "abc"):
        save_artifact(path, "scores", arrays, {**facts, "class_names": wrong})
        with pytest.raises(ValueError, match=r"is damaged or not a scores file .*class_names"):
            Scores.load(path)


def test_scores_are_kept_as_float64_and_cannot_be_changed_afterwards() -> None:
    values = np.array([3, 1, 2])
    scores = Scores(scores=values, tie_break=np.zeros(3, np.float16), method="x")  # type: ignore[arg-type]
    values[:] = 0
    assert scores.scores.dtype == scores.tie_break.dtype == np.float64
    assert scores.scores.tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        scores.scores[0] = 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: np.array(values)}, rf"^`{name}` must be a finite, non-empty vector")
            for name in ("scores", "tie_break")
            for values in ([1.0, np.nan], [np.inf, 0.0], [-np.inf, 0.0], [[1.0], [2.0]], 3.0)
        ),
        ({"scores": np.zeros(0)}, "^`scores` must be a finite, non-empty vector"),
        ({"tie_break": np.ones(3)}, r"^`tie_break` must have the shape of `scores` \(2,\)"),
        ({"unit": "pixel"}, "^`unit` must be one of class, sample; got 'pixel'"),
        ({"class_names": ("a",)}, "^`class_names` must name each of the 2 classes; got 1 names"),
    ],
)
def test_bad_parts_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scores(**({"scores": np.ones(2), "method": "x"} | changes))


def test_scores_are_summarised() -> None:
    scores = scores_of(np.arange(9.0), method="el2n")
    assert repr(scores) == "Scores(el2n, 9 x class, best=[8, 7, 6, 5, 4, ...])"
    assert scores.summary() == {
        "method": "el2n",
        "unit": "class",
        "scored": 9,
        "above_zero": 8,
        "best": [8, 7, 6, 5, 4, 3, 2, 1, 0],
    }


def test_a_file_without_tie_break_scores_is_refused(tmp_path: Path) -> None:
    Scores(scores=np.ones(3), tie_break=np.arange(3.0), method="m").save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "a.npz", **{**arrays, "tie_break": np.zeros(0)})
    with pytest.raises(ValueError, match="`tie_break` must be a finite, non-empty vector"):
        Scores.load(tmp_path / "a.npz")
