"""Random scores: the baseline that every method must beat."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...validate import check_choice, check_int
from ..inputs import count_in
from ..scores import Scores, Unit
from . import Method

if TYPE_CHECKING:
    from ...beton import BetonIndex


def random_scores(
    beton: "int | str | os.PathLike[str] | BetonIndex",
    *,
    seed: int = 0,
    unit: Unit = "class",
    label_field: str = "label",
) -> Scores:
    """Score classes or samples by a uniform draw in [0, 1).

    Args:
        beton: source beton. In Python also the number of its classes or samples.
        seed: seed of the draw.
        unit: score classes or samples.
        label_field: integer field with the class ids.
    """
    check_choice("unit", unit, ("class", "sample"))
    seed = check_int("seed", seed, 0)
    count, about = count_in(beton, unit, label_field)
    return Scores(
        scores=np.random.default_rng(seed).random(count),
        method="random",
        unit=unit,
        provenance={"seed": seed, **about},
    )


METHOD = Method(
    function=random_scores,
    flags={"beton": Path, "seed": int, "unit": Unit, "label_field": str},
    units=("class", "sample"),
)
