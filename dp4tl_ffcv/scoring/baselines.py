"""Scores that look at no target: what label and feature mapping are compared with."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..kernels.checks import as_num_classes
from .scores import Scores

__all__ = ["random_scores"]


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
    """
    draws = np.random.default_rng(seed).random(as_num_classes(count))
    return Scores(
        scores=draws,
        tie=np.zeros_like(draws),
        method="random",
        unit=unit,
        provenance={"seed": int(seed), **(provenance or {})},
    )
