"""EL2N: norm of the error of the softmax outputs, averaged over training runs."""

from pathlib import Path
from typing import Any

import numpy as np

from ..combine import mean_scores
from ..features.reductions import exponentials
from ..inputs import FeaturesOrArray, blocks, check_finite, labelled, logits_of, whole_source
from ..scores import Scores
from . import Method


def el2n(source: FeaturesOrArray, labels: Any = None) -> Scores:
    """Score samples by the norm of the error of their prediction; the hardest are kept first.

    `s[n] = ||softmax(h(x_n)) - onehot(y_n)||_2`, averaged over runs. (Paul et al. 2021, arXiv
    2107.07075, who average over runs early in training.)

    The outputs must be for the source's classes, in the same order. `select` compares their names,
    if the checkpoint and the source's manifest have them.

    Args:
        source: features folders of the source with logits (`dp4tl features --logits`), one per run.
            In Python also Features or a list of them, or logits h `(N, C)`; memory maps are read
            block by block.
        labels: class ids `(N,)` in `[0, C)`; with an array of logits only.

    Raises:
        StaleArtifactError: the runs have different sources.

    >>> el2n([[4.0, 0.0], [0.0, 4.0]], [0, 0]).ranking()
    array([1, 0])
    """
    if labels is not None:
        return _of_logits(source, labels)
    runs = []
    for run in source if isinstance(source, list | tuple) else [source]:
        features, about = whole_source(run)
        if features is None:
            raise ValueError("`labels` are needed with logits; got None.")
        facts = {"provenance": about, "class_names": features.class_names}
        runs.append(_of_logits(logits_of("source", features), features.labels, **facts))
    return mean_scores(runs)


def _of_logits(logits: Any, labels: Any, **facts: Any) -> Scores:
    values, ids = labelled("source", logits, labels)
    norms = np.empty(len(values), dtype=np.float64)
    for rows in blocks(values):
        block = values[rows]
        check_finite("source", block, np.arange(rows.start, rows.start + len(block)))
        weights, totals = exponentials(block)
        # 1 - p as the sum of the other classes: a difference would round to 0 where p is near 1.
        weights[np.arange(len(block)), ids[rows]] = 0.0
        others = weights.sum(axis=1)
        norms[rows] = np.sqrt((weights**2).sum(axis=1) + others**2) / totals
    return Scores(scores=norms, method="el2n", unit="sample", **facts)


METHOD = Method(
    function=el2n,
    flags={"source": tuple[Path, ...]},
    units=("sample",),
    outputs="logits",
    reference="[Paul et al. 2021](https://arxiv.org/abs/2107.07075)",
)
