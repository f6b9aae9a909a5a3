"""Random scores: the baseline that every method must beat."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...validate import check_choice, check_int
from ..inputs import count_in
from ..scores import Scores, Unit
from . import Method

if TYPE_CHECKING:
    from ...beton import BetonIndex


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Random scores: the baseline that every method must beat."""

    beton: Path
    """Source whose classes or samples are scored."""
    seed: int = 0
    """The same seed gives the same scores."""
    unit: Unit = "class"
    """What to score."""
    label_field: str = "label"
    """Integer field of the class ids."""


def random_scores(
    beton: "int | str | os.PathLike[str] | BetonIndex",
    *,
    seed: int = 0,
    unit: Unit = "class",
    label_field: str = "label",
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score classes or samples by a uniform draw in [0, 1).

    Args:
        beton: the source; or the number of its classes or samples.
        seed: seed of numpy's default generator.
        unit: what to score.
        label_field: field of the class ids.
        provenance: facts to record with the scores.
    """
    check_choice("unit", unit, ("class", "sample"))
    seed = check_int("seed", seed, 0)
    count, about = count_in(beton, unit, label_field)
    return Scores(
        scores=np.random.default_rng(seed).random(count),
        method="random",
        unit=unit,
        provenance={"seed": seed, **about, **(provenance or {})},
    )


METHOD = Method(function=random_scores, inputs=Inputs, units=("class", "sample"))
