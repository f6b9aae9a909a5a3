"""TDDS: how much the effect of training on a sample's outputs varies, late epochs counting most."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ...validate import check_number
from ..dynamics import Dynamics, Rows, score_dynamics, window_of
from ..scores import Scores
from . import Method


def tdds(dynamics: Any, *, window: int | None = None, decay: float = 0.9) -> Scores:
    """Score samples by temporal dual-depth scoring; the highest are kept first.

    `d_e = sum_c |p_e[c] log(p_e[c] / p_{e-1}[c])|` is the change of a sample's softmax outputs p in
    epoch e. A window of J epochs has J - 1 changes; `R_k = sqrt(sum_e (d_e - mean d)^2)` over
    window k. The score is the exponential moving average `s_k = decay R_k + (1 - decay) s_{k-1}`
    after the last window, with `s_{-1} = 0`. Changes over an epoch without the sample are left out;
    a sample with fewer than J - 1 changes comes last. (Zhang et al. 2024, arXiv 2311.13613.)

    Args:
        dynamics: dynamics files of runs on the source (`dp4tl pretrain --record-dynamics`), one per
            run. In Python also Dynamics or a list of them.
        window: epochs per window J, at least 3. Default: 10, or all epochs of a shorter run.
        decay: weight of the newest window in the average, in (0, 1].

    Raises:
        StaleArtifactError: the runs have different sources.
        ValueError: a run has fewer epochs than `window`.
    """
    check_number("decay", decay, above=0, at_most=1)

    def variability(run: Dynamics, changes: Rows) -> Rows:
        size = window_of(run, window) - 1
        if size < 2:
            return np.full(len(changes), np.nan)
        windows = sliding_window_view(changes, size, axis=1)
        spread = np.sqrt(np.square(windows - windows.mean(axis=2, keepdims=True)).sum(axis=2))
        age = np.arange(spread.shape[1])[::-1]
        scores: Rows = np.nansum(spread * decay * (1 - decay) ** age, axis=1)
        scores[np.isnan(spread).all(axis=1)] = np.nan
        return scores

    return score_dynamics("tdds", dynamics, variability, of="change", window=window, decay=decay)


METHOD = Method(
    function=tdds,
    flags={"dynamics": tuple[Path, ...], "window": int | None, "decay": float},
    units=("sample",),
    reference="[Zhang et al. 2024](https://arxiv.org/abs/2311.13613)",
)
