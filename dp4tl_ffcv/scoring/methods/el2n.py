"""EL2N: how wrong a model's predictions of the source samples are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..combine import mean_scores
from ..features.reductions import exponentials
from ..inputs import FeaturesOrArray, logits_of, source_provenance, whole_source
from ..samples import blocks, labelled
from ..scores import Scores
from . import Method


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """EL2N: norm of the error of the softmax outputs, averaged over runs."""

    source: tuple[Path, ...]
    """Features of the source with logits (`dp4tl features --logits`), one folder per run."""


def el2n(
    source: FeaturesOrArray, labels: Any = None, *, provenance: Mapping[str, Any] | None = None
) -> Scores:
    """Score samples by the norm of the error of their prediction; the hardest are kept first.

    `s[n] = ||softmax(h(x_n)) - onehot(y_n)||_2`, averaged over runs. (Paul et al. 2021, arXiv
    2107.07075, who average over runs early in training.)

    Args:
        source: the source's Features with logits, or the path of their folder, or a list of these,
            one per run; or logits h `(N, C)`, where memory maps are read block by block.
        labels: classes `(N,)` of the samples, each in `[0, C)`; with logits only.
        provenance: facts to record with the scores.

    Raises:
        StaleArtifactError: the runs have different sources.

    >>> el2n([[4.0, 0.0], [0.0, 4.0]], [0, 0]).ranking()
    array([1, 0])
    """
    if labels is None:
        runs = source if isinstance(source, list | tuple) else [source]
        return mean_scores([_of_run(run, provenance) for run in runs])
    return _of_logits(source, labels, provenance or {})


def _of_run(source: FeaturesOrArray, provenance: Mapping[str, Any] | None) -> Scores:
    features = whole_source(source)
    if features is None:
        raise ValueError("`labels` are needed with logits; got None.")
    about = {**source_provenance(features), **(provenance or {})}
    return _of_logits(logits_of("source", features), features.labels, about)


def _of_logits(logits: Any, labels: Any, provenance: Mapping[str, Any]) -> Scores:
    values, ids = labelled("source", logits, labels)
    norms = np.empty(len(values), dtype=np.float64)
    for rows in blocks(values):
        block = values[rows]
        if not np.isfinite(block).all():
            raise ValueError("`source` must be finite; got NaN or inf. Check the model's outputs.")
        weights, totals = exponentials(block)
        # 1 - p as the sum of the other classes: a difference would round to 0 where p is near 1.
        weights[np.arange(len(block)), ids[rows]] = 0.0
        others = weights.sum(axis=1)
        norms[rows] = np.sqrt((weights**2).sum(axis=1) + others**2) / totals
    return Scores(scores=norms, method="el2n", unit="sample", provenance=provenance)


METHOD = Method(
    function=el2n,
    inputs=Inputs,
    units=("sample",),
    reference="[Paul et al. 2021](https://arxiv.org/abs/2107.07075)",
)
