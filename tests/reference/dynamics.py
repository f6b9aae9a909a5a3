"""Twins of the methods that score samples by training dynamics: one sample at a time."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def forgetting(margins: Sequence[float], num_epochs: int) -> float:
    """Count the epochs in which a sample is wrong after it was right."""
    right = [margin > 0 for margin in margins]
    if not any(right):
        return num_epochs
    return sum(before and not now for before, now in pairwise(right))


def aum(margins: Sequence[float]) -> float:
    """Average the margins."""
    return sum(margins) / len(margins)


def dyn_unc(probabilities: Sequence[float], window: int) -> float:
    """Average the standard deviation over windows."""
    found = []
    for start in range(len(probabilities) - window + 1):
        part = probabilities[start : start + window]
        mean = sum(part) / window
        found.append((sum((each - mean) ** 2 for each in part) / (window - 1)) ** 0.5)
    return sum(found) / len(found)


def tdds(changes: Sequence[float], window: int, decay: float) -> float:
    """Follow the moving average of the spread of the changes, window after window."""
    average = 0.0
    for start in range(len(changes) - (window - 1) + 1):
        part = changes[start : start + window - 1]
        mean = sum(part) / len(part)
        spread = sum((each - mean) ** 2 for each in part) ** 0.5
        average = decay * spread + (1 - decay) * average
    return average


def predictions(
    logits: Sequence[np.ndarray], label: int
) -> tuple[list[float], list[float], list[float]]:
    """Return probability, margin and change of a sample from its logits `(C,)` in each epoch."""
    softmax = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]
    margins = [float(row[label] - np.delete(row, label).max()) for row in logits]
    changes = [float(np.abs(now * np.log(now / before)).sum()) for before, now in pairwise(softmax)]
    return [float(row[label]) for row in softmax], margins, changes
