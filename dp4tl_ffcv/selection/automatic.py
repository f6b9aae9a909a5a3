"""The fraction of classes to keep, chosen by the votes of a target."""

import warnings
from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scoring import Scores
from ..scoring.votes import FEWEST_IMAGES, expected_coverage
from .budgets import part_of

LEAST_COVERAGE = 0.95
"""Coverage of a target that counts as enough.

An uncovered percent of the target cost about 0.2 points of accuracy at most in each study that
`python -m benchmarks.votes.keeps` has compared, so that 5 % cost the margin of one point or less.
"""
CONFIDENCE = 0.95
"""One-sided confidence level of the lower bound of the coverage."""
_VARIANCE = NormalDist().inv_cdf(CONFIDENCE) ** 2
_KEEPS = tuple(percent / 100 for percent in range(20, 101))  # no study kept less without loss
_SHOWN = _KEEPS[::10]


def automatic_keep(
    scores: Sequence[Scores],
    combine: Callable[[Sequence[Scores]], Scores] | None = None,
    among: NDArray[np.bool_] | None = None,
    least_coverage: float = LEAST_COVERAGE,
) -> tuple[float, dict[str, Any]]:
    """Return the smallest fraction whose coverage is surely enough, and the evidence.

    Fractions are multiples of 0.01 from 0.2 to 1. A fraction is enough if a lower bound of the
    expected coverage is. Coverage grows with the fraction, so that a choice among fractions is
    wrong no more often than the bound of one of them. If the votes of a target say too little, or
    its images are too few, warn and return 1; the evidence then has the `problems`. The votes are
    taken to make sense where their label information is unknown.

    Args:
        scores: scores by votes, one per target.
        combine: returns the scores to rank by, given those of all targets; None for one target.
        among: classes with samples `(C,)`; by default, all.
        least_coverage: coverage that is enough.

    Raises:
        ValueError: scores hold no votes.
    """
    for one in scores:
        if one.votes is None:
            raise ValueError(
                "`keep` is 'auto', which needs votes of a target's images, as label_mapping and "
                f"feature_mapping give them; `scores` hold {one.method} scores of each {one.unit}. "
                "Give a fraction, such as 0.4."
            )
    votes = [one.votes for one in scores if one.votes is not None]
    covered = expected_coverage(scores, combine, among)
    images = min(each.images for each in votes)
    size = len(covered) if among is None else among.sum()
    coverage = {keep: float(covered[part_of(keep, size) - 1]) for keep in _KEEPS}
    bounds = {keep: _lower_bound(share, images) for keep, share in coverage.items()}
    keep = next((keep for keep in _KEEPS if bounds[keep] >= least_coverage), 1.0)
    problems = [each.problem for each in votes if each.problem is not None]
    for each in votes:
        each.warn(stacklevel=3)
    if images < FEWEST_IMAGES:
        problems.append(
            f"a target has {images} images, and {FEWEST_IMAGES} or more are needed to tell which "
            "classes are enough for it"
        )
        warnings.warn(
            f"`keep` is 'auto', but {problems[-1]}. All classes are kept. Give a fraction, or "
            "score more images.",
            stacklevel=3,
        )
    keep = 1.0 if problems else keep
    shown = sorted({*_SHOWN, keep})
    return keep, {
        "least_coverage": least_coverage,
        "confidence": CONFIDENCE,
        "coverage": {str(each): coverage[each] for each in shown},
        "lower_bound": {str(each): bounds[each] for each in shown},
        **({"problems": problems} if problems else {}),
    }


def _lower_bound(share: float, images: int) -> float:
    """Return the lower end of the score interval of a share of images (Wilson 1927)."""
    unit = _VARIANCE / images
    spread = sqrt(unit * share * (1 - share) + unit**2 / 4)
    return (share + unit / 2 - spread) / (1 + unit)
