"""Scores and clusters made of bare arrays, and strategies that draw them."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from dp4tl_ffcv import Clusters, Scores

FEW = st.sampled_from([-1.5, 0.0, 0.0, 1.0, 2.0, 2.5])  # few values, so that many are equal


def scores_of(
    scores: Any, tie_break: Any = (), method: str = "x", unit: Any = "class", **provenance: Any
) -> Scores:
    return Scores(
        scores=np.asarray(scores, dtype=float),
        tie_break=np.asarray(tie_break, dtype=float) if len(tie_break) else np.zeros(len(scores)),
        method=method,
        unit=unit,
        provenance=provenance,
    )


@st.composite
def drawn_scores(draw: st.DrawFn, count: int, unit: Any = "class", values: Any = FEW) -> Scores:
    entries = st.lists(values, min_size=count, max_size=count)
    return scores_of(draw(entries), draw(entries), unit=unit)


def ranked(scores: Scores) -> list[int]:
    """Sort by score descending, then tie-break score descending, then id ascending."""
    keys = zip(scores.scores.tolist(), scores.tie_break.tolist(), strict=True)
    return [i for _, _, i in sorted((-s, -t, i) for i, (s, t) in enumerate(keys))]


def clusters_of(labels: Any, centroids: Any, **provenance: Any) -> Clusters:
    return Clusters(
        labels=np.asarray(labels), centroids=np.asarray(centroids, float), provenance=provenance
    )
