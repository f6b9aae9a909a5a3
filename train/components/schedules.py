"""Learning rate and resolution, as pure functions of the step and the epoch."""

import math
from typing import Literal

_MULTIPLE = 32  # pixels: what the strides of a ResNet divide


def learning_rate_factor(
    step: int,
    *,
    num_steps: int,
    steps_per_epoch: int,
    schedule: Literal["cyclic", "step", "cosine", "constant"] = "cyclic",
    warmup: float = 0.125,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
    step_length: int = 30,
    step_ratio: float = 0.1,
) -> float:
    """Return the learning rate at a step as a share of the highest.

    The rate rises on a line over `warmup`, reaches 1 and never rises again:

        rise(t) = first + (1 - first) t / T             for t < T = warmup N
        cyclic  = end + (1 - end) r                     with r = (N - t) / (N - T)
        cosine  = end + (1 - end) (1 - cos(pi r)) / 2
        step    = step_ratio ^ floor(epoch / step_length)

    Args:
        step: t, counted from 0.
        num_steps: N, of the whole run.
        steps_per_epoch: an epoch's; only the step schedule asks.
        schedule: how the rate falls. The cyclic one rises over one step at least.
        warmup: share of all steps over which the rate rises; 0 for no rise.
        start_factor: `first`, the factor at step 0. As a step at rate zero would be lost, 0
            stands for 1 / (T + 1), where a line that is at 0 one step earlier is.
        end_factor: the factor behind the last step, of the cyclic and cosine schedules.
        step_length: epochs between the falls of the step schedule, counted from the run's start.
        step_ratio: what each of them multiplies the rate by.
    """
    peak = warmup * num_steps
    if schedule == "cyclic":
        peak = max(1.0, peak)
    if step < peak:
        first = start_factor or 1 / (peak + 1)
        return first + (1 - first) * step / peak
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(step_ratio ** (step // (step_length * steps_per_epoch)))
    remaining = max(0.0, num_steps - step) / max(1.0, num_steps - peak)
    if schedule == "cosine":
        remaining = (1 - math.cos(math.pi * remaining)) / 2
    return end_factor + (1 - end_factor) * remaining


def resolution_at(
    epoch: int,
    *,
    resolution: int,
    end_resolution: int | None = None,
    ramp: tuple[int, int] | None = None,
) -> int:
    """Return the side of an epoch's training crops in pixels.

    As in ffcv-imagenet: up to the ramp's first epoch `resolution`, from its last on
    `end_resolution`, and between them a line rounded to the nearest multiple of 32, a tie to the
    even multiple.

    Args:
        epoch: counted from 0.
        resolution: before the ramp.
        end_resolution: behind it.
        ramp: first and last epoch; None stays at `resolution`.
    """
    if ramp is None or end_resolution is None or epoch <= ramp[0]:
        return resolution
    start, end = ramp
    if epoch >= end:
        return end_resolution
    side = resolution + (end_resolution - resolution) * (epoch - start) / (end - start)
    return round(side / _MULTIPLE) * _MULTIPLE
