"""Scores from training dynamics against their formulas, and the file of dynamics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Dynamics, Scores, StaleArtifactError, select
from dp4tl_ffcv.scoring import aum, coverage_centric, dyn_unc, forgetting, tdds
from tests.conftest import Images
from tests.reference import dynamics as twins
from tests.support.dynamics import dynamics_of

NAN = np.nan


def recorded(values: Any) -> list[float]:
    return [float(value) for value in values if not np.isnan(value)]


BY_HAND: dict[str, tuple[Callable[..., Scores], str, int, Callable[..., float]]] = {
    "forgetting": (forgetting, "margin", 1, lambda row: twins.forgetting(row, 14)),
    "aum": (aum, "margin", 1, twins.aum),
    "dyn_unc": (dyn_unc, "probability", 10, lambda row: twins.dyn_unc(row, 10)),
    "dyn_unc of 3 epochs": (
        lambda given: dyn_unc(given, window=3), "probability", 3,
        lambda row: twins.dyn_unc(row, 3),
    ),
    "tdds": (tdds, "change", 9, lambda row: twins.tdds(row, 10, 0.9)),
    "tdds of 4 epochs": (
        lambda given: tdds(given, window=4, decay=0.3), "change", 3,
        lambda row: twins.tdds(row, 4, 0.3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("missing", [0.0, 0.4], ids=["whole", "incomplete"])
@pytest.mark.parametrize("name", BY_HAND)
def test_scores_follow_their_formulas(
    name: str, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, column, least, twin = BY_HAND[name]
    monkeypatch.setattr("dp4tl_ffcv.scoring.dynamics._BLOCK_BYTES", 8 * 14 * 7)  # 7 rows
    given = dynamics_of(60, 14, missing=missing, num_samples=70)
    scores = method(given).scores
    expected = [recorded(row) for row in getattr(given, column)]
    enough = np.array([len(row) >= least for row in expected])
    assert enough.any()
    assert enough.all() == (missing == 0)
    found = scores[given.indices]
    by_hand = [twin(row) for row, known in zip(expected, enough, strict=True) if known]
    np.testing.assert_allclose(found[enough], by_hand, rtol=1e-9)
    # What has too few epochs comes last, and so do samples that the run has never seen.
    unknown = np.append(found[~enough], np.delete(scores, given.indices))
    assert len(unknown) >= 10
    assert (unknown < found[enough].min()).all()


def test_a_sample_that_is_forgotten_and_one_that_is_never_learned() -> None:
    margins = [[1, -1, 1, -1], [-1, -1, -1, -1], [2, 2, 2, 2], [-1, 1, 1, -1], [-9, 1, 1, -9]]
    given = dynamics_of(5, 4, margin=margins)
    scores = forgetting(given)
    assert scores.scores.tolist() == [2, 4, 0, 1, 1]
    assert scores.ranking().tolist() == [1, 0, 4, 3, 2]


def test_an_epoch_without_the_sample_does_not_hide_that_it_was_forgotten() -> None:
    given = dynamics_of(2, 3, margin=[[1, NAN, -1], [NAN, 1, 1]])
    assert forgetting(given).scores.tolist() == [1, 0]


def test_low_margins_are_difficult() -> None:
    given = dynamics_of(20, 3)
    high, low = aum(given), aum(given, prefer="low")
    np.testing.assert_array_equal(low.scores, -high.scores)
    assert set(coverage_centric(low, cutoff=0.1).ranking()[-2:]) == set(low.ranking()[:2])


def test_runs_are_averaged_and_files_may_be_given(tmp_path: Path) -> None:
    runs = [dynamics_of(20, 12, seed=seed) for seed in (1, 2)]
    for number, run in enumerate(runs):
        run.save(tmp_path / f"{number}.npz")
    for method in (forgetting, aum, dyn_unc, tdds):
        mean = np.mean([method(run).scores for run in runs], axis=0)
        found = method([tmp_path / "0.npz", runs[1]])
        np.testing.assert_allclose(found.scores, mean, rtol=1e-12)
        assert (found.unit, found.method) == ("sample", method.__name__)


def test_the_scores_fit_the_beton_of_the_run_and_no_other(
    photos: Images, other_photos: Images
) -> None:
    fingerprint = photos.index.fingerprint
    given = dynamics_of(120, 3, provenance={"source_fingerprint": fingerprint})
    scores = aum(given)
    assert scores.provenance["source_fingerprint"] == fingerprint
    assert len(select(scores, photos.index, keep=0.5)) == 60
    with pytest.raises(StaleArtifactError, match="another beton"):
        select(scores, other_photos.index, keep=0.5)
    other = dynamics_of(120, 3, provenance={"source_fingerprint": "other"})
    with pytest.raises(StaleArtifactError, match="different sources"):
        aum([given, other])


def test_a_window_is_at_most_the_run() -> None:
    given = dynamics_of(9, 4)
    np.testing.assert_array_equal(dyn_unc(given).scores, dyn_unc(given, window=4).scores)
    np.testing.assert_array_equal(tdds(given).scores, tdds(given, window=4).scores)
    for method in (dyn_unc, tdds):
        with pytest.raises(ValueError, match=r"^`window` is 5, but `dynamics` has 4 epochs"):
            method(given, window=5)
    with pytest.raises(ValueError, match=r"`dynamics` has too few epochs, 1, for dyn_unc"):
        dyn_unc(dynamics_of(9, 1))
    with pytest.raises(ValueError, match=r"`dynamics` has too few epochs, 2, for tdds"):
        tdds(dynamics_of(9, 2))
    with pytest.raises(ValueError, match=r"^`decay` must be above 0"):
        tdds(given, decay=0.0)


def test_a_file_holds_what_was_saved(tmp_path: Path) -> None:
    given = dynamics_of(9, 4, missing=0.3, num_samples=12)
    given.save(tmp_path / "d.npz")
    found = Dynamics.load(tmp_path / "d.npz")
    for name in (*Dynamics.ARRAYS, "num_samples", "provenance"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert (len(found), found.num_epochs) == (9, 4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"indices": [0, 2, 1]}, "`indices` must be ascending"),
        ({"indices": [0, 1, 1]}, "`indices` must be ascending"),
        ({"indices": [0, 1, 3]}, "`indices`.*3"),
        ({"indices": [-1, 1, 2]}, "`indices`.*-1"),
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
        ({"margin": np.zeros((3, 1))}, "`margin` must have shape"),
        ({"change": np.zeros((2, 2))}, "`change` must have shape"),
        ({"probability": np.zeros(3)}, "`probability` must have shape"),
        ({"margin": np.full((3, 2), np.inf)}, "`margin` must be finite"),
    ],
)
def test_dynamics_that_no_run_has_are_rejected(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dynamics_of(3, 2, **changes)
