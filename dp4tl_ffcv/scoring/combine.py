"""Scores made of several: the mean over runs, and one ranking for several targets."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import StaleArtifactError
from .checks import one_source
from .scores import Scores

# Ratios of weights that are this near, relatively, to fractions of so small a denominator are them.
_ROUNDING, _LARGEST_DENOMINATOR = 1e-14, 10_000

How = Literal["sum", "max", "rank", "round-robin"]


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Average scores of the same method over runs: `s[i] = mean_r s_r[i]`, and so the tie key.

    Args:
        scores: of each run.

    Returns:
        Scores of that method, with the provenance of each run.

    Raises:
        TypeError: `scores` is no list, or an entry is not Scores.
        ValueError: there are none, or they differ in unit, method or number.
        StaleArtifactError: they are of different sources or clusters.
    """
    provenance = _alike(scores)
    if len(methods := _methods(scores)) > 1:
        raise ValueError(
            f"`scores` must be of one method; got {' and '.join(methods)}. "
            "Combine those of several by `combine_scores`."
        )
    share = [1.0 / len(scores)] * len(scores)
    return Scores(
        scores=_mean([one.scores for one in scores], share),
        tie=_mean([one.tie for one in scores], share),
        method=methods[0],
        unit=scores[0].unit,
        provenance=provenance,
    )


def combine_scores(
    scores: Sequence[Scores], *, how: How = "sum", weights: Sequence[float] | None = None
) -> Scores:
    """Combine scores of several targets into one.

    With weights w, scaled to a sum of 1:

    * `sum`: `s[c] = sum_t w_t s_t[c] / sum_k s_t[k]`. Each target counts alike whatever its size.
    * `max`: `s[c] = max_t w_t s_t[c] / sum_k s_t[k]`: what one target needs is kept.
    * `rank`: `s[c] = -sum_t w_t r_t[c]`, with r the positions in the targets' rankings from 0 on;
      classes of equal score and tie key share the mean of theirs.
    * `round-robin`: the targets take turns, as often as their weights say (turn k of t is due at
      time `k / w_t`, the first of equals first), and each adds the best of its ranking that is not
      there yet; `s[c] = C - position of c`.

    The tie keys are combined in the same way, each by itself; round-robin leaves no ties.

    Args:
        scores: of each target, over the same classes or samples.
        how: the rule.
        weights: one per target, above 0; all alike if None.

    Returns:
        Scores of method `HOW_METHOD`, with the provenance of each.

    Raises:
        TypeError: `scores` is no list, or an entry is not Scores.
        ValueError: there are none, they differ in unit or number, a weight is wrong; or, for
            `sum` and `max`, scores are negative or all 0.
        StaleArtifactError: they are of different sources or clusters.
    """
    if how not in get_args(How):
        raise ValueError(f"`how` must be one of {get_args(How)}; got {how!r}. Choose one.")
    provenance = _alike(scores)
    shares = _shares(weights, len(scores))
    if how == "round-robin":
        order = _in_turns([one.ranking() for one in scores], shares)
        combined = np.empty(len(order), dtype=np.float64)
        combined[order] = np.arange(len(order), 0, -1)
        tie = np.zeros_like(combined)
    elif how == "rank":
        combined = -_mean([_positions(one.scores, one.tie) for one in scores], shares)
        tie = -_mean([_positions(one.tie) for one in scores], shares)
    else:
        join = _mean if how == "sum" else _largest
        combined = join([_scaled(one.scores, how) for one in scores], shares)
        tie = join([_scaled(one.tie, how, key=True) for one in scores], shares)
    return Scores(
        scores=combined,
        tie=tie,
        method="_".join((how, *_methods(scores))),
        unit=scores[0].unit,
        provenance={**provenance, "how": how, "weights": shares.tolist()},
    )


def _mean(values: Sequence[NDArray[np.float64]], shares: Iterable[float]) -> NDArray[np.float64]:
    total = np.zeros(len(values[0]), dtype=np.float64)
    for value, share in zip(values, shares, strict=True):
        total += share * value
    return total


def _largest(values: Sequence[NDArray[np.float64]], shares: Iterable[float]) -> NDArray[np.float64]:
    weighted = [share * value for value, share in zip(values, shares, strict=True)]
    largest: NDArray[np.float64] = np.max(weighted, axis=0)
    return largest


def _scaled(values: NDArray[np.float64], how: str, *, key: bool = False) -> NDArray[np.float64]:
    """Return values over their sum; tie keys may all be 0."""
    largest = values.max()
    if (values < 0).any() or not (largest > 0 or key):
        what = "tie keys" if key else "scores"
        raise ValueError(
            f"`scores` must have {what} >= 0 of a sum above 0 for {how!r}; got {what} from "
            f"{values.min():g} to {largest:g}. Combine them by 'rank' or 'round-robin'."
        )
    scaled = values / largest if largest > 0 else values  # the sum of huge ones would overflow
    return scaled / scaled.sum() if largest > 0 else values


def _positions(*keys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each entry's position by descending keys, the first key first; equals share a mean."""
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
    """Return all ids: turn k of a target is due at time k / share, the first of equals first."""
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
    """Return numbers in inverse proportion to the shares, whole ones: no rounding decides ties."""
    exact = []
    for ratio in map(Fraction, (shares.max() / shares).tolist()):
        near = ratio.limit_denominator(_LARGEST_DENOMINATOR)
        exact.append(near if abs(near - ratio) <= _ROUNDING * ratio else ratio)
    common = math.lcm(*(ratio.denominator for ratio in exact))
    return [int(ratio * common) for ratio in exact]


def _alike(scores: Sequence[Scores]) -> dict[str, Any]:
    """Check that scores are of the same things, and return where they all come from."""
    if not isinstance(scores, Sequence):
        raise TypeError(
            f"`scores` must be a list of Scores; got {type(scores).__name__}. Pass list(scores)."
        )
    for one in scores:
        if not isinstance(one, Scores):
            raise TypeError(
                f"`scores` must hold Scores; got {type(one).__name__}. Load files by `Scores.load`."
            )
    if not scores:
        raise ValueError("`scores` must hold at least one; got none. Pass those to combine.")
    for name, found in (
        ("unit", [one.unit for one in scores]),
        ("number of entries", [len(one) for one in scores]),
    ):
        if len(different := list(dict.fromkeys(found))) > 1:
            raise ValueError(
                f"`scores` must have one {name}; got {different[0]} and {different[1]}. "
                "Score the same classes, or the same samples."
            )
    provenances = [one.provenance for one in scores]
    parts = [{"method": one.method, "scores": dict(one.provenance)} for one in scores]
    return {"parts": parts, **one_source("scores", provenances), **_one_clustering(provenances)}


def _one_clustering(provenances: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = list(dict.fromkeys(provenance.get("clusters_sha256") for provenance in provenances))
    if len(found) > 1:
        one, other = ("none" if digest is None else digest[:16] for digest in found[:2])
        raise StaleArtifactError(
            f"`scores` must be of one clustering's pseudo-classes; got clusters {one} and {other}. "
            "Score the same clusters."
        )
    return {} if found[0] is None else {"clusters_sha256": found[0]}


def _methods(scores: Sequence[Scores]) -> list[str]:
    return list(dict.fromkeys(one.method for one in scores))


def _shares(weights: Sequence[float] | None, count: int) -> NDArray[np.float64]:
    """Return weights over their sum."""
    try:
        values = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    except (ValueError, TypeError):  # text, or rows of several lengths
        values = np.empty(0)
    if values.shape != (count,) or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(
            f"`weights` must hold a number above 0 for each of the {count} scores; got "
            f"{weights!r}. Leave out what should not count."
        )
    # By a power of two, which keeps all bits: the sum of huge weights would overflow.
    values = np.ldexp(values, -np.frexp(values.max())[1])
    if not values.all():
        raise ValueError(
            f"`weights` must not differ so much that a share of 0 is left; got {weights!r}. Leave "
            "out what should not count."
        )
    shares: NDArray[np.float64] = values / values.sum()
    return shares
