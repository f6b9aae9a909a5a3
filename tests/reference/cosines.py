"""Twins of the scoring methods `similarity` and `semdedup`: all cosines, image by image."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def cosine(one: Rows, other: Rows) -> float:
    lengths = float(np.sqrt(one @ one) * np.sqrt(other @ other))
    return float(one @ other) / lengths if lengths else 0.0


def similarities(source: Rows, target: Rows, neighbors: int) -> list[float]:
    """Return each source row's mean cosine with its nearest target rows."""
    found = []
    for row in source:
        cosines = sorted(cosine(row, image) for image in target)
        found.append(float(np.mean(cosines[-neighbors:])))
    return found


def distinctness(rows: Rows, labels: list[int], centroids: Rows) -> list[float]:
    """Return 1 minus each row's largest cosine with rows of its cluster that are harder.

    Rows are hard if their cosine with the centroid is small.
    """
    found = [2.0] * len(rows)
    for cluster, centroid in enumerate(centroids):
        members = [n for n, label in enumerate(labels) if label == cluster]
        members.sort(key=lambda n: (cosine(rows[n], centroid), n))
        for place, n in enumerate(members):
            if place:
                found[n] = 1 - max(cosine(rows[n], rows[m]) for m in members[:place])
    return found
