"""Coverage-centric selection (CCS): samples of every difficulty alike, except the hardest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...validate import check_int
from ..inputs import check_one_source
from ..scores import Scores
from . import Method

_MOST_STRATA = 1_000_000  # the strata are counted one by one


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Coverage-centric (CCS): samples of every difficulty alike, except the hardest."""

    difficulty: Path
    """Sample scores that grow with difficulty, such as el2n or grand."""
    strata: int = 50
    """Number of difficulty ranges, of equal width, that share the budget."""
    cutoff: float = 0.0
    """Fraction of the samples, the hardest, that comes last."""
    seed: int = 0
    """Seed of the order within each range."""


def coverage_centric(
    difficulty: Scores | str | os.PathLike[str],
    *,
    strata: int = 50,
    cutoff: float = 0.0,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Order samples so that the first m, for any m, cover all difficulties evenly.

    The hardest fraction `cutoff` comes last, the least hard of it first. The range of the other
    difficulties is cut into strata of equal width. Each stratum is shuffled. In every round, each
    stratum that still has samples gives one: the largest stratum first, the harder of two equal
    ones first. So the first m hold `min(size, level)` of each stratum, and the largest strata share
    the remainder: the budget of coverage-centric coreset selection for every m at once. (Zheng et
    al. 2023, arXiv 2210.15809.)

    `s[n] = N - position of n`.

    Args:
        difficulty: sample scores that are high for hard samples, such as `el2n` and `grand`; or
            the path of their file.
        strata: number of strata, 1 to 1,000,000.
        cutoff: fraction in [0, 1) that is likely mislabelled, rounded down to whole samples.
        seed: seed of the shuffles.
        provenance: facts to record with the scores.

    Raises:
        StaleArtifactError: `provenance` names another source than the difficulty.
    """
    difficulty = Scores.of(difficulty)
    if getattr(difficulty, "unit", None) != "sample":
        raise ValueError(f"`difficulty` must be sample scores, such as el2n; got {difficulty!r}.")
    strata, seed = check_int("strata", strata, 1, _MOST_STRATA), check_int("seed", seed, 0)
    if not isinstance(cutoff, int | float | np.number) or not 0 <= cutoff < 1:
        raise ValueError(f"`cutoff` must be a fraction in [0, 1); got {cutoff!r}.")
    ranking = difficulty.ranking()
    hardest = int(np.round(float(cutoff) * len(ranking), 6))  # 0.29 of 100 is 29, not 28.999
    hardest = min(hardest, len(ranking) - 1)
    order = np.concatenate(
        (_in_rounds(difficulty.scores, ranking[hardest:], strata, seed), ranking[:hardest][::-1])
    )
    scores = np.empty(len(order), dtype=np.float64)
    scores[order] = np.arange(len(order), 0, -1)
    about = {
        "strata": strata,
        "cutoff": float(cutoff),
        "seed": seed,
        "difficulty": {"method": difficulty.method, "scores": dict(difficulty.provenance)},
    }
    source = check_one_source("difficulty", (difficulty.provenance, provenance or {}))
    return Scores(
        scores=scores,
        method="coverage_centric",
        unit="sample",
        provenance={**about, **(provenance or {}), **source},
    )


def _in_rounds(
    difficulty: NDArray[np.float64], ids: NDArray[np.int64], strata: int, seed: int
) -> NDArray[np.int64]:
    """Return `ids` shuffled within strata of difficulty, one of each stratum in every round."""
    ids = np.random.default_rng(seed).permutation(ids)
    lowest, highest = difficulty[ids].min(), difficulty[ids].max()
    # Halved, so that no range is too wide for a float64.
    width = (highest / 2 - lowest / 2) / strata
    places = np.zeros(len(ids), dtype=np.int64)
    if width > 0:
        places = ((difficulty[ids] / 2 - lowest / 2) / width).astype(np.int64)
    places = np.minimum(places, strata - 1)  # the hardest lies on the upper edge of the last
    grouped = np.argsort(places, kind="stable")
    sizes = np.bincount(places, minlength=strata)
    rounds = np.empty(len(ids), dtype=np.int64)
    rounds[grouped] = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = np.empty(strata, dtype=np.int64)
    turns[np.argsort(sizes, kind="stable")[::-1]] = np.arange(strata)
    return ids[np.lexsort((turns[places], rounds))]


METHOD = Method(
    function=coverage_centric,
    inputs=Inputs,
    units=("sample",),
    reference="[Zheng et al. 2023](https://arxiv.org/abs/2210.15809)",
)
