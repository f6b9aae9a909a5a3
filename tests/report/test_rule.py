"""The rule for "without loss": a paired interval against a margin of one point."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dp4tl_ffcv.report.rule import compare, smallest_keep


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    values = np.random.default_rng(0).normal(-0.002, 0.01, 8)
    found = compare(list(values))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(values.mean())
    assert found.seeds == 8


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.0] * 8, "no loss"),
        ([-0.009] * 8, "no loss"),  # a loss smaller than the margin
        ([-0.011] * 8, "loss"),
        ([-0.03, -0.02, -0.04, -0.03] * 2, "loss"),
        ([0.05, -0.05, 0.01, 0.0] * 2, "cannot tell"),
        ([0.0] * 7, "cannot tell"),
        ([-0.03] * 7, "cannot tell"),
        ([0.03], "cannot tell"),
    ],
    ids=["equal", "small", "beyond", "loss", "noise", "seven", "seven losses", "one seed"],
)
def test_the_verdict_follows_the_interval(differences: list[float], verdict: str) -> None:
    assert compare(differences).verdict == verdict


def test_equal_differences_are_as_uncertain_as_one_image() -> None:
    found = compare([0.0] * 8, step=1 / 100)
    assert (found.low, found.high) == pytest.approx((-0.00836, 0.00836), abs=1e-5)
    assert compare([0.0] * 8, step=1 / 50).verdict == "cannot tell"
    spread = [0.05, -0.05, 0.01, 0.0] * 2  # is larger than a step
    assert compare(spread, step=1 / 100) == compare(spread)


@pytest.mark.parametrize("spread", [0.002, 0.006, 0.02])
def test_a_loss_of_the_missed_size_is_shown_in_four_of_five_studies(spread: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 8)
    size = compare(list(spread * values / values.std(ddof=1))).missed
    found = rng.normal(-size, spread, (4000, 8))
    width = 2.3646 * found.std(axis=1, ddof=1) / np.sqrt(8)  # t(0.975, 7)
    is_loss = (found.mean(axis=1) + width < 0) & (found.mean(axis=1) - width <= -0.01)
    assert is_loss.mean() == pytest.approx(0.8, abs=0.02)


def test_differences_must_be_finite_numbers() -> None:
    for wrong in ([], [float("nan")], [0.1, float("inf")]):
        with pytest.raises(ValueError, match="one for each seed"):
            compare(wrong)


def test_pruning_counts_only_if_every_smaller_pruning_is_without_loss() -> None:
    good, bad = "no loss", "cannot tell"
    assert smallest_keep({0.4: good, 0.2: good}) == 0.2
    assert smallest_keep({0.2: good, 0.4: bad, 0.6: good}) == 0.6
    assert smallest_keep({0.4: "loss"}) is None
