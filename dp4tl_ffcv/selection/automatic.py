"""The fraction of classes to keep, chosen by the votes of a target."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scoring import Scores
from ..scoring.votes import expected_coverage
from .budgets import part_of

LEAST_COVERAGE = 0.97
"""Expected coverage of a target that counts as enough.

An uncovered percent of the target cost 0.1 to 0.2 points of a linear probe where at most a fifth
was uncovered (digits by glyphs and by the planted digits of the benchmarks), so that 3 % cost about
half of the margin of one point.
"""
_KEEPS = tuple(percent / 100 for percent in range(20, 101, 5))  # less lost accuracy at any coverage


def automatic_keep(
    scores: Sequence[Scores],
    combine: Callable[[Sequence[Scores]], Scores],
    among: NDArray[np.bool_],
) -> tuple[float, dict[str, Any]]:
    """Return the smallest fraction whose expected coverage is enough, and the evidence.

    Fractions are multiples of 0.05 from 0.2 to 1. If the votes of a target say too little, warn and
    return 1.

    Args:
        scores: scores by votes, one per target.
        combine: returns the scores to rank by, given those of all targets.
        among: classes with samples `(C,)`.

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
    coverage = {keep: float(covered[part_of(keep, among.sum()) - 1]) for keep in _KEEPS}
    keep = next((keep for keep in _KEEPS if coverage[keep] >= LEAST_COVERAGE), 1.0)
    if any(each.problem for each in votes):
        keep = 1.0
        for each in votes:
            each.warn(stacklevel=3)
    spread = coverage[keep] * (1 - coverage[keep]) / min(each.images for each in votes)
    return keep, {
        "least_coverage": LEAST_COVERAGE,
        "coverage": {str(keep): share for keep, share in coverage.items()},
        "standard_error": float(np.sqrt(max(0.0, spread))),
    }
