"""AUM: area under the margin, the mean margin of a sample over training."""

from pathlib import Path
from typing import Any, Literal

from ...validate import check_choice
from ..dynamics import Dynamics, Rows, mean_recorded, score_dynamics
from ..scores import Scores
from . import Method

Preference = Literal["high", "low"]


def aum(dynamics: Any, *, prefer: Preference = "high") -> Scores:
    """Score samples by their mean margin over the epochs.

    `s[n] = mean_e (z_e[y_n] - max_{c != y_n} z_e[c])` with the logits z_e of epoch e, or its
    negative for `prefer="low"`. (Pleiss et al. 2020, arXiv 2001.10528, who remove the samples with
    the lowest values as mislabelled. Coreset methods, such as coverage-centric selection, take low
    values as difficult.)

    Args:
        dynamics: dynamics files of runs on the source (`dp4tl pretrain --record-dynamics`), one per
            run. In Python also Dynamics or a list of them.
        prefer: samples to keep first, those with a high mean margin (learned early) or a low one
            (hard or mislabelled).

    Raises:
        StaleArtifactError: the runs have different sources.
    """
    sign = 1.0 if check_choice("prefer", prefer, ("high", "low")) == "high" else -1.0

    def mean_margin(_: Dynamics, margins: Rows) -> Rows:
        return sign * mean_recorded(margins)

    return score_dynamics("aum", dynamics, mean_margin, of="margin", prefer=prefer)


METHOD = Method(
    function=aum,
    flags={"dynamics": tuple[Path, ...], "prefer": Preference},
    units=("sample",),
    reference="[Pleiss et al. 2020](https://arxiv.org/abs/2001.10528)",
)
