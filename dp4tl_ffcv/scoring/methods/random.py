"""Scores that look at no target: what label and feature mapping are compared with."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..checks import whole
from ..scores import Scores


def random_scores(
    count: int,
    *,
    seed: int,
    unit: Literal["class", "sample"] = "class",
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score `count` classes or samples by a uniform draw in [0, 1).

    Args:
        count: number of classes or samples, at least 1.
        seed: of numpy's default generator; the same seed gives the same scores.
        unit: what is scored.
        provenance: kept with the scores.

    Raises:
        TypeError: a number is not whole.
        ValueError: a number is out of range.
    """
    count, seed = whole("count", count, 1), whole("seed", seed, 0)
    draws = np.random.default_rng(seed).random(count)
    return Scores(
        scores=draws,
        tie=np.zeros_like(draws),
        method="random",
        unit=unit,
        provenance={"seed": seed, **(provenance or {})},
    )
