"""Combine scores: average over runs, or rank classes for several targets."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import StaleArtifactError
from ..validate import check_choice, check_class_names
from .inputs import check_one_source
from .scores import Scores

# Ratios of weights are rounded to a fraction with a small denominator if it is this close.
_ROUNDING, _LARGEST_DENOMINATOR = 1e-14, 10_000

Combine = Literal["sum", "max", "rank", "round-robin"]


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Average one method's scores, and its tie-break scores, over runs: `s[i] = mean_r s_r[i]`.

    A single run is returned unchanged.

    Raises:
        StaleArtifactError: the scores were made for different sources, classes or clusters.
    """
    provenance = _check_alike(scores)
    if len(methods := _methods(scores)) > 1:
        raise ValueError(
            f"`scores` come from the methods {' and '.join(methods)}; an average needs one "
            "method. Use `combine_scores`."
        )
    if len(scores) == 1:
        return scores[0]
    share = [1.0 / len(scores)] * len(scores)
    return Scores(
        scores=_weighted([one.scores for one in scores], share).sum(axis=0),
        tie_break=_weighted([one.tie_break for one in scores], share).sum(axis=0),
        method=methods[0],
        unit=scores[0].unit,
        class_names=_class_names(scores),
        provenance=provenance,
    )


def combine_scores(
    scores: Sequence[Scores], *, combine: Combine = "sum", weights: Sequence[float] | None = None
) -> Scores:
    """Combine scores of several targets into one.

    With weights w, scaled to a sum of 1:

    * `sum`: `s[c] = sum_t w_t s_t[c] / sum_k s_t[k]`. Large and small targets count alike.
    * `max`: `s[c] = max_t w_t s_t[c] / sum_k s_t[k]`. A class that one target needs is kept.
    * `rank`: `s[c] = -sum_t w_t r_t[c]`, with r the positions in the targets' rankings, from 0;
      classes with equal scores and tie-break scores share their mean position.
    * `round-robin`: the targets take turns in proportion to their weights (turn k of target t is
      due at time `k / w_t`; the earlier target goes first on a tie). In its turn, a target adds
      the best class of its ranking that is not yet chosen; `s[c] = C - position of c`.

    The tie-break scores are combined separately, by the same rule; round-robin leaves no ties.

    Args:
        scores: one per target, over the same classes or samples.
        combine: the rule.
        weights: one per target, above 0. Default: all equal.

    Returns:
        Scores of a method such as `sum_label_mapping`, with the provenance of each target.

    Raises:
        StaleArtifactError: the scores were made for different sources, classes or clusters.
    """
    check_choice("combine", combine, get_args(Combine))
    provenance = _check_alike(scores)
    shares = _shares(weights, len(scores))
    if combine == "round-robin":
        order = _in_turns([one.ranking() for one in scores], shares)
        combined = np.empty(len(order), dtype=np.float64)
        combined[order] = np.arange(len(order), 0, -1)
        tie_break = np.zeros_like(combined)
    elif combine == "rank":
        positions = [_positions(one.scores, one.tie_break) for one in scores]
        combined = -_weighted(positions, shares).sum(axis=0)
        tie_break = -_weighted([_positions(one.tie_break) for one in scores], shares).sum(axis=0)
    else:
        join = np.sum if combine == "sum" else np.max
        combined = join(_weighted([_scaled(one.scores, combine) for one in scores], shares), axis=0)
        ties = [_scaled(one.tie_break, combine, zeros=True) for one in scores]
        tie_break = join(_weighted(ties, shares), axis=0)
    return Scores(
        scores=combined,
        tie_break=tie_break,
        method="_".join((combine, *_methods(scores))),
        unit=scores[0].unit,
        class_names=_class_names(scores),
        provenance={**provenance, "how": combine, "weights": shares.tolist()},
    )


def _weighted(values: Sequence[NDArray[np.float64]], shares: Any) -> NDArray[np.float64]:
    weighted: NDArray[np.float64] = np.asarray(shares)[:, None] * np.array(values)
    return weighted


def _scaled(values: NDArray[np.float64], rule: str, *, zeros: bool = False) -> NDArray[np.float64]:
    """Divide values by their sum. All may be 0 if `zeros` is true."""
    largest = values.max()
    if (values < 0).any() or not (largest > 0 or zeros):
        raise ValueError(
            f"{rule!r} needs scores >= 0 that are not all 0; got values from {values.min():g} "
            f"to {largest:g}. Use 'rank' or 'round-robin'."
        )
    scaled = values / largest if largest > 0 else values  # the sum of huge values would overflow
    return scaled / scaled.sum() if largest > 0 else values


def _positions(*keys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions in descending order of the keys; equal entries share the mean position."""
    order = np.lexsort([-key for key in reversed(keys)])
    new = np.zeros(len(order), dtype=np.bool_)
    for key in keys:
        new[1:] |= key[order[1:]] != key[order[:-1]]
    group = np.cumsum(new)
    sizes = np.bincount(group)
    middles = np.cumsum(sizes) - sizes + (sizes - 1) / 2
    positions = np.empty(len(order), dtype=np.float64)
    positions[order] = middles[group]
    return positions


def _in_turns(
    rankings: Sequence[NDArray[np.int64]], shares: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return all ids in round-robin order; turn k of a target is due at time k / share."""
    lists = [ranking.tolist() for ranking in rankings]
    waits = _waits(shares)
    places, due = [0] * len(lists), list(waits)
    seen = bytearray(len(lists[0]))
    order: list[int] = []
    while len(order) < len(seen):
        target = due.index(min(due))
        while seen[lists[target][places[target]]]:
            places[target] += 1
        best = lists[target][places[target]]
        seen[best] = 1
        order.append(best)
        due[target] += waits[target]
    return np.array(order, dtype=np.int64)


def _waits(shares: NDArray[np.float64]) -> list[int]:
    """Return integers in inverse proportion to the shares, so that rounding decides no tie."""
    exact = []
    for ratio in map(Fraction, (shares.max() / shares).tolist()):
        near = ratio.limit_denominator(_LARGEST_DENOMINATOR)
        exact.append(near if abs(near - ratio) <= _ROUNDING * ratio else ratio)
    common = math.lcm(*(ratio.denominator for ratio in exact))
    return [int(ratio * common) for ratio in exact]


def _check_alike(scores: Sequence[Scores]) -> dict[str, Any]:
    """Check that all scores are for the same classes or samples, and return their provenance."""
    if not isinstance(scores, Sequence) or not all(isinstance(one, Scores) for one in scores):
        raise TypeError(f"`scores` must be a list of Scores; got {scores!r}.")
    if not scores:
        raise ValueError("`scores` is empty; pass at least one.")
    for name, found in (
        ("units", [one.unit for one in scores]),
        ("lengths", [len(one) for one in scores]),
    ):
        if len(different := list(dict.fromkeys(found))) > 1:
            raise ValueError(
                f"`scores` have different {name}, {different[0]} and {different[1]}. Score the "
                "same classes or samples."
            )
    about: dict[str, Any] = {
        "parts": [{"method": one.method, "scores": dict(one.provenance)} for one in scores],
        **check_one_source("scores", [one.provenance for one in scores]),
    }
    clusters = {one.provenance.get("clusters_sha256") for one in scores}
    if len(clusters) > 1:
        raise StaleArtifactError(
            "`scores` were made with different clusters. Score the same clusters."
        )
    if clusters != {None}:
        about["clusters_sha256"] = clusters.pop()
    return about


def _class_names(scores: Sequence[Scores]) -> tuple[str, ...]:
    """Return the class names of the scores that have them, which must agree."""
    names = max((one.class_names for one in scores), key=len)
    for one in scores:
        check_class_names(
            names,
            one.class_names,
            where="one of `scores`",
            elsewhere="another",
            advice="Score the same classes, in the same order.",
        )
    return names


def _methods(scores: Sequence[Scores]) -> list[str]:
    return list(dict.fromkeys(one.method for one in scores))


def _shares(weights: Sequence[float] | None, count: int) -> NDArray[np.float64]:
    try:
        values = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    except (ValueError, TypeError):  # text, or rows of several lengths
        values = np.empty(0)
    # The sum of huge weights would overflow. Scaling by a power of two keeps all bits.
    values = np.ldexp(values, -np.frexp(values.max(initial=0.0))[1])
    if values.shape != (count,) or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(
            f"`weights` must hold a number above 0, and not negligible, for each of the {count} "
            f"scores; got {weights!r}."
        )
    shares: NDArray[np.float64] = values / values.sum()
    return shares
