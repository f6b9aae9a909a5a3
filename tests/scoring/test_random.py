"""`random_scores`: what the methods are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Scores
from dp4tl_ffcv.scoring import random_scores


def test_the_same_seed_gives_the_same_scores_and_another_gives_others() -> None:
    one, same, other = (random_scores(50, seed=seed) for seed in (3, 3, 4))
    assert one.scores.tobytes() == same.scores.tobytes()
    assert one.ranking().tolist() != other.ranking().tolist()


def test_scores_are_numpys_uniform_draws() -> None:
    scores = random_scores(1000, seed=5)
    np.testing.assert_array_equal(scores.scores, np.random.default_rng(5).random(1000))
    assert not scores.tie.any()
    assert len(set(scores.scores.tolist())) == 1000


@pytest.mark.parametrize("unit", ["class", "sample"])
def test_scores_say_what_they_are(unit: Any, tmp_path: Path) -> None:
    scores = random_scores(7, seed=5, unit=unit)
    assert (scores.method, scores.unit, scores.provenance) == ("random", unit, {"seed": 5})
    scores.save(tmp_path / "s.npz")
    assert Scores.load(tmp_path / "s.npz").ranking().tolist() == scores.ranking().tolist()


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError)])
def test_a_bad_number_is_refused(count: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^`count` must be"):
        random_scores(count, seed=0)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (None, TypeError), (0.5, TypeError)])
def test_a_bad_seed_is_refused(seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^`seed` must be"):
        random_scores(3, seed=seed)


def test_a_seed_of_numpy_is_kept_as_a_plain_number(tmp_path: Path) -> None:
    scores = random_scores(3, seed=np.int64(4))  # type: ignore[arg-type]
    scores.save(tmp_path / "s.npz")
    assert Scores.load(tmp_path / "s.npz").provenance == {"seed": 4}
