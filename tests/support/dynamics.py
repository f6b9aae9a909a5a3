"""Training dynamics of any run."""

from typing import Any

import numpy as np

from dp4tl_ffcv import Dynamics


def dynamics_of(
    samples: int, epochs: int, *, seed: int = 0, missing: float = 0.0, **changes: Any
) -> Dynamics:
    """Return random dynamics of the last ids of a beton, in which values are missing.

    `missing` is their fraction. If it is above 0, the first sample has no value at all.
    """
    rng = np.random.default_rng(seed)
    shape = samples, epochs
    num_samples = changes.get("num_samples", samples)
    values = {
        "probability": rng.random(shape),
        "margin": rng.normal(size=shape),
        "change": rng.exponential(size=shape),
    }
    is_missing = rng.random(shape) < missing
    is_missing[0] = missing > 0
    for each in values.values():
        each[is_missing] = np.nan
    ids = np.arange(num_samples - samples, num_samples)
    arrays = {name: np.asarray(each, np.float16) for name, each in values.items()}
    given = {"indices": ids, **arrays, "num_samples": num_samples, **changes}
    return Dynamics(**given)
