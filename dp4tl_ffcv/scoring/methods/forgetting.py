"""Forgetting: how often training forgets a sample that it had learned."""

from pathlib import Path
from typing import Any

import numpy as np

from ..dynamics import Dynamics, Rows, mean_recorded, score_dynamics
from ..scores import Scores
from . import Method


def forgetting(dynamics: Any) -> Scores:
    """Score samples by their forgetting events; the most forgotten are kept first.

    `s[n]` is the number of epochs in which the prediction of sample n is wrong after it was right
    in the epoch before. A sample that is never right gets the number of epochs, more than any
    other. Among equal counts, the sample with the lower mean margin comes first. (Toneva et al.
    2019, arXiv 1812.05159, who remove the least forgotten samples.)

    Args:
        dynamics: dynamics files of runs on the source (`dp4tl pretrain --record-dynamics`), one per
            run. In Python also Dynamics or a list of them.

    Raises:
        StaleArtifactError: the runs have different sources.
    """
    return score_dynamics("forgetting", dynamics, _events, of="margin")


def _events(run: Dynamics, margins: Rows) -> tuple[Rows, Rows]:
    is_right, mean = margins > 0, mean_recorded(margins)
    events = (is_right[:, :-1] & ~is_right[:, 1:]).sum(axis=1).astype(np.float64)
    events[~is_right.any(axis=1)] = run.num_epochs
    events[np.isnan(mean)] = np.nan
    return events, -mean


METHOD = Method(
    function=forgetting,
    flags={"dynamics": tuple[Path, ...]},
    units=("sample",),
    reference="[Toneva et al. 2019](https://arxiv.org/abs/1812.05159)",
)
