"""Coverage-centric (CCS): samples of every difficulty alike, except the hardest."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...validate import check_int
from ..inputs import check_one_source
from ..scores import Scores
from . import Method

_MOST_STRATA = 1_000_000  # memory grows with the number of strata


def coverage_centric(
    difficulty: Scores | str | os.PathLike[str],
    *,
    strata: int = 50,
    cutoff: float = 0.0,
    seed: int = 0,
) -> Scores:
    """Order samples so that the first m, for any m, cover all difficulties evenly.

    `s[n] = N - position of n`. The difficulties are cut into strata of equal width, and each
    stratum is shuffled. In every round, each stratum that still has samples gives one. The largest
    stratum goes first; the harder stratum goes first on a tie. So the first m samples hold
    `min(size, level)` samples of each stratum, and the largest strata share the remainder. For
    every m, this is the budget of coverage-centric coreset selection. (Zheng et al. 2023, arXiv
    2210.15809.)

    Args:
        difficulty: sample scores that are high for hard samples, such as el2n or grand.
        strata: number of strata (difficulty ranges of equal width), 1 to 1,000,000.
        cutoff: fraction of hardest samples to rank last, because they are often mislabelled; in
            [0, 1). In Python: their number is rounded down, and the easiest of them comes first.
        seed: seed of the shuffles.
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
        **check_one_source("difficulty", [difficulty.provenance]),
    }
    return Scores(
        scores=scores,
        method="coverage_centric",
        unit="sample",
        class_names=difficulty.class_names,
        provenance=about,
    )


def _in_rounds(
    difficulty: NDArray[np.float64], ids: NDArray[np.int64], strata: int, seed: int
) -> NDArray[np.int64]:
    """Return `ids` shuffled within strata of difficulty, one of each stratum in every round."""
    ids = np.random.default_rng(seed).permutation(ids)
    lowest, highest = difficulty[ids].min(), difficulty[ids].max()
    # Halved: the full range may overflow float64.
    width = (highest / 2 - lowest / 2) / strata
    places = np.zeros(len(ids), dtype=np.int64)
    if width > 0:
        places = ((difficulty[ids] / 2 - lowest / 2) / width).astype(np.int64)
    places = np.minimum(places, strata - 1)  # the hardest is on the last one's upper edge
    grouped = np.argsort(places, kind="stable")
    sizes = np.bincount(places, minlength=strata)
    rounds = np.empty(len(ids), dtype=np.int64)
    rounds[grouped] = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = np.empty(strata, dtype=np.int64)
    turns[np.argsort(sizes, kind="stable")[::-1]] = np.arange(strata)
    return ids[np.lexsort((turns[places], rounds))]


METHOD = Method(
    function=coverage_centric,
    flags={"difficulty": Path, "strata": int, "cutoff": float, "seed": int},
    units=("sample",),
    reference="[Zheng et al. 2023](https://arxiv.org/abs/2210.15809)",
)
