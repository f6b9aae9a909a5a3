"""Dyn-Unc: how much the probability of a sample's class varies during training."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..dynamics import Dynamics, Rows, mean_recorded, score_dynamics, window_of
from ..scores import Scores
from . import Method


def dyn_unc(dynamics: Any, *, window: int | None = None) -> Scores:
    """Score samples by the dynamic uncertainty of their class; the most uncertain are kept first.

    `s[n] = mean_k std(p_k, ..., p_{k+J-1})` over all windows of J epochs, with the softmax output
    p_e of the true class in epoch e and the standard deviation of a sample (divided by J - 1).
    Epochs without the sample are left out; a sample with fewer than J epochs comes last. (He et al.
    2024, arXiv 2306.05175. The paper leaves out the last window, so that a run of J epochs would
    have none.)

    Args:
        dynamics: dynamics files of runs on the source (`dp4tl pretrain --record-dynamics`), one per
            run. In Python also Dynamics or a list of them.
        window: epochs per window J, at least 2. Default: 10, or all epochs of a shorter run.

    Raises:
        StaleArtifactError: the runs have different sources.
        ValueError: a run has fewer epochs than `window`.
    """

    def uncertainty(run: Dynamics, probabilities: Rows) -> Rows:
        size = window_of(run, window)
        if size < 2:
            return np.full(len(probabilities), np.nan)
        windows = sliding_window_view(probabilities, size, axis=1)
        return mean_recorded(windows.std(axis=2, ddof=1))

    return score_dynamics("dyn_unc", dynamics, uncertainty, of="probability", window=window)


METHOD = Method(
    function=dyn_unc,
    flags={"dynamics": tuple[Path, ...], "window": int | None},
    units=("sample",),
    reference="[He et al. 2024](https://arxiv.org/abs/2306.05175)",
)
