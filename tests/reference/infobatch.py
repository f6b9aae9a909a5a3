"""Twin of `train.components.infobatch`: one sample at a time."""

from collections.abc import Mapping, Sequence

import numpy as np


def infobatch(
    scores: Mapping[int, float], ids: Sequence[int], draws: Sequence[float], ratio: float
) -> dict[int, float]:
    """Return the weight of each sample of an epoch, from the losses of those that have one."""
    mean = np.mean(list(scores.values())) if scores else -np.inf
    weights = {}
    for sample, draw in zip(ids, draws, strict=True):
        if sample in scores and scores[sample] < mean:
            if draw >= ratio:
                weights[sample] = 1 / (1 - ratio)
        else:
            weights[sample] = 1.0
    return weights
