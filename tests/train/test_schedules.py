"""Learning rates rise once and then fall; resolutions follow ffcv-imagenet."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torchs

from train.components.schedules import learning_rate, learning_rate_factor, resolution_at
from train.configs.pretrain import Config

SCHEDULES = ("cyclic", "step", "cosine", "constant")


def factors(num_steps: int, *, steps_per_epoch: int = 10, **changes: Any) -> list[float]:
    """The factors of a run, and the factor after its last step."""
    return [
        learning_rate_factor(step, num_steps=num_steps, steps_per_epoch=steps_per_epoch, **changes)
        for step in range(num_steps + 1)
    ]


def torch_factors(make: Any, num_steps: int) -> list[float]:
    """The factors of one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0, momentum=0.9)
    schedule, rates = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR passes an epoch to the next schedule
        for _ in range(num_steps + 1):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return rates


# Every schedule.

runs = st.fixed_dictionaries(
    {
        "num_steps": st.integers(1, 400),
        "steps_per_epoch": st.integers(1, 50),
        "warmup": st.floats(0, 1),
        "start_factor": st.floats(0, 1),
        "end_factor": st.floats(0, 1),
        "step_length": st.integers(1, 5),
        "step_ratio": st.floats(0, 1),
    }
)


def peak_of(schedule: str, run: dict[str, Any]) -> float:
    """Steps of the rise; a cycle has one at least."""
    peak: float = run["warmup"] * run["num_steps"]
    return max(1.0, peak) if schedule == "cyclic" else peak


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(run=runs)
def test_a_rate_rises_once_from_its_start_and_then_falls(
    schedule: str, run: dict[str, Any]
) -> None:
    rates = np.array(factors(schedule=schedule, **run))
    num_steps, peak = run["num_steps"], peak_of(schedule, run)
    assert (rates >= 0).all()
    assert (rates <= 1 + 1e-12).all()
    assert rates[0] == pytest.approx((run["start_factor"] or 1 / (peak + 1)) if peak else 1)
    rise, fall = np.split(rates, [math.ceil(peak)])
    assert (np.diff(rise) >= -1e-12).all()
    assert (np.diff(fall) <= 1e-12).all()
    if schedule != "step":
        # No jumps: the steepest slope of the rise, and of a cosine's fall, in one step.
        steepest = max(1 / max(1.0, peak), math.pi / 2 / max(1.0, num_steps - peak))
        assert np.abs(np.diff(rates[:-1])).max(initial=0) <= steepest + 1e-12


# Each schedule.


def test_the_default_rises_and_falls_on_lines() -> None:
    # Ten steps up from zero, one step before the first, then 70 down to zero after the last.
    expected = [(step + 1) / 11 for step in range(10)] + [
        (80 - step) / 70 for step in range(10, 81)
    ]
    np.testing.assert_allclose(factors(80), expected, rtol=1e-12, atol=1e-15)
    assert factors(1)[0] == 0.5
    np.testing.assert_allclose(factors(4, warmup=0.0), [1 / 2, 1, 2 / 3, 1 / 3, 0], atol=1e-15)


def test_the_cycle_is_torchs() -> None:
    # As DP4TL calls it: from a base rate up over two epochs and down again over the others.
    def make(optimizer: Any) -> Any:
        return torchs.CyclicLR(optimizer, 1e-3, 1.0, step_size_up=20, step_size_down=140)

    rates = factors(160, warmup=2 / 16, start_factor=1e-3, end_factor=1e-3)
    np.testing.assert_allclose(rates, torch_factors(make, 160), rtol=1e-9)


@pytest.mark.parametrize(("epochs", "warm_up_epochs"), [(10, 1), (10, 3), (100, 10)])
def test_a_cosine_after_a_warm_up_is_torchs_sequence(epochs: int, warm_up_epochs: int) -> None:
    steps, up = epochs * 10, warm_up_epochs * 10

    def make(optimizer: Any) -> Any:
        rise = torchs.LinearLR(optimizer, start_factor=1e-3, total_iters=up)
        fall = torchs.CosineAnnealingLR(optimizer, T_max=steps - up, eta_min=1e-2)
        return torchs.SequentialLR(optimizer, [rise, fall], [up])

    options = {"warmup": up / steps, "start_factor": 1e-3, "end_factor": 1e-2}
    rates = factors(steps, schedule="cosine", **options)
    np.testing.assert_allclose(rates, torch_factors(make, steps), rtol=1e-6, atol=1e-9)


def test_steps_fall_every_few_epochs_of_the_run() -> None:
    rates = factors(90, schedule="step", warmup=0.1, step_length=3, step_ratio=0.5)
    assert rates[9:30] == [1.0] * 21
    assert rates[30:60] == [0.5] * 30
    assert rates[60:90] == [0.25] * 30
    np.testing.assert_allclose(rates[:9], [(step + 1) / 10 for step in range(9)])


def test_a_constant_follows_its_warm_up() -> None:
    assert factors(20, schedule="constant", warmup=0.0) == [1.0] * 21
    np.testing.assert_allclose(
        factors(20, schedule="constant", warmup=0.1), [1 / 3, 2 / 3] + [1] * 19
    )


def test_the_highest_rate_is_per_step_or_per_process() -> None:
    for lr_per, factor in (("step", 1), ("process", 3)):
        config = Config(train=Path("train.beton"), run=Path("run"), lr=0.2, lr_per=lr_per)
        rate = learning_rate(config, num_steps=160, world_size=3)
        assert rate(20) == pytest.approx(factor * 0.2)


# Resolution.


def reference(epoch: int, low: int, high: int, start: int, end: int) -> int:
    """ffcv-imagenet's rule: a line between the epochs, to the nearest multiple of 32."""
    if epoch <= start:
        return low
    if epoch >= end:
        return high
    return int(np.round(np.interp(epoch, [start, end], [low, high]) / 32)) * 32


@given(
    low=st.integers(1, 400),
    high=st.integers(1, 400),
    start=st.integers(0, 20),
    length=st.integers(0, 20),
    epoch=st.integers(0, 50),
)
@example(low=128, high=160, start=0, length=2, epoch=1)  # a tie
def test_the_ramp_is_ffcv_imagenets(
    low: int, high: int, start: int, length: int, epoch: int
) -> None:
    end = start + length
    side = resolution_at(epoch, resolution=low, end_resolution=high, ramp=(start, end))
    assert side == reference(epoch, low, high, start, end)
    assert resolution_at(epoch, resolution=low) == low
