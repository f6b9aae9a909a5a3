"""`random_scores`: the baseline."""

from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.scoring import random_scores


def test_scores_are_numpys_uniform_draws() -> None:
    scores = random_scores(1000, seed=5)
    np.testing.assert_array_equal(scores.scores, np.random.default_rng(5).random(1000))
    assert not scores.tie_break.any()
    assert (scores.method, scores.unit, scores.provenance) == ("random", "class", {"seed": 5})
    assert scores.ranking().tolist() != random_scores(1000, seed=6).ranking().tolist()


def test_a_beton_gives_the_number_of_classes_or_samples(uneven: BetonIndex) -> None:
    for unit, count in (("class", 12), ("sample", 34)):
        for beton in (uneven, uneven.path):
            scores = random_scores(beton, seed=5, unit=unit)  # type: ignore[arg-type]  # a str
            assert scores.scores.tolist() == random_scores(count, seed=5).scores.tolist()
            assert scores.provenance == {"seed": 5, "source_fingerprint": uneven.fingerprint}
    assert len(random_scores(uneven, label_field="other")) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beton": 0}, "^`beton` must be at least 1"),
        ({"seed": -1}, "^`seed` must be at least 0"),
        ({"unit": "pixel"}, "^`unit` must be one of class, sample"),
    ],
)
def test_bad_input_is_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_scores(**({"beton": 3} | arguments))
