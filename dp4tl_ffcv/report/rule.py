"""Whether pruning loses accuracy: a test of non-inferiority on paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

from .names import FEWEST_SEEDS, LEVEL, MARGIN

_POWER = 0.8
_SPREADS = 200  # spreads of the seeds that the power is averaged over

Verdict = Literal["no loss", "loss", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Mean difference to the full source over paired seeds, and what it shows."""

    seeds: int
    mean: float
    low: float
    """Lower end of the 95 % confidence interval of the mean; -inf for a single seed."""
    high: float
    """Upper end; inf for a single seed."""
    missed: float
    """Smallest true loss that gets the verdict `loss` with a chance of about 80 %."""

    @property
    def verdict(self) -> Verdict:
        """`no loss` if `low` is above -1 point, `loss` if `high` is below 0, else `cannot tell`.

        With fewer than 8 seeds it is `cannot tell`.
        """
        if self.seeds < FEWEST_SEEDS:
            return "cannot tell"
        if self.low > -MARGIN:
            return "no loss"
        return "loss" if self.high < 0 else "cannot tell"


def compare(differences: Sequence[float], step: float = 0.0) -> Comparison:
    """Compare accuracies with those of the full source, seed by seed.

    "No loss" is non-inferiority with a margin of one point: the lower end of the two-sided 95 %
    interval, `mean - t(0.975, n - 1) s / sqrt(n)`, lies above -0.01. (Piaggio et al. 2012, JAMA
    308:2594.)

    The spread `s` counts as at least `step`. Accuracies are multiples of 1 / the number of test
    images, so a few seeds often have equal differences, which does not show that all seeds do:
    after 8 equal ones, up to 31 % of further seeds may differ (`1 - 0.05 ** (1 / 8)`).

    Args:
        differences: accuracy minus the accuracy of the full source `(n,)`, one for each seed.
        step: smallest change of an accuracy, 1 / the number of test images.

    Raises:
        ValueError: there is no difference, or one is not finite.

    >>> compare([0.001, -0.002, 0.003, 0.0, 0.001, 0.002, -0.001, 0.0]).verdict
    'no loss'
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError("`differences` must be finite numbers, one for each seed.")
    count, mean = len(values), float(values.mean())
    if count == 1:
        return Comparison(seeds=1, mean=mean, low=-np.inf, high=np.inf, missed=np.inf)
    error = max(float(values.std(ddof=1)), step) / np.sqrt(count)
    width = float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Comparison(
        seeds=count,
        mean=mean,
        low=mean - width,
        high=mean + width,
        missed=_missed(error, width, count - 1),
    )


def _missed(error: float, width: float, freedom: int) -> float:
    """Return the true loss that gets the verdict `loss` with the chance `_POWER`.

    The verdict needs a mean below `-width`, so that `high` is below 0, and of at most `width - 1`
    point, so that `low` is at most -1 point. The mean varies by `error`, and `width` with the
    spread of the seeds, whose square is distributed as chi-squared.

    Args:
        error: standard error of the mean.
        width: half of the interval.
        freedom: degrees of freedom of the spread.
    """
    if error == 0:
        return MARGIN
    widths = width * np.sqrt(chi2.ppf((np.arange(_SPREADS) + 0.5) / _SPREADS, freedom) / freedom)
    limits = np.minimum(-widths, widths - MARGIN)

    def excess(loss: float) -> float:
        return float(norm.cdf((limits + loss) / error).mean()) - _POWER

    return float(brentq(excess, 0.0, MARGIN + widths.max() + 10 * error))


def smallest_keep(verdicts: Mapping[float, str]) -> float | None:
    """Return the smallest fraction kept down to which every tested fraction is without loss.

    Return None if the largest is not.

    Args:
        verdicts: verdicts by the fraction kept.
    """
    found = None
    for keep in sorted(verdicts, reverse=True):
        if verdicts[keep] != "no loss":
            break
        found = keep
    return found
