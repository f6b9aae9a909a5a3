"""Learning rate and resolution, as pure functions of the step and the epoch."""

import math
from collections.abc import Callable
from typing import Any, Literal

from ..configs.common import RunConfig

_MULTIPLE = 32  # pixels: the total stride of a ResNet


def learning_rate(
    config: RunConfig, num_steps: int, world_size: int = 1
) -> Callable[[float], float]:
    """Return the learning rate of a run of `num_steps` steps as a function of the step."""
    highest = config.lr * world_size if config.lr_per == "process" else config.lr
    names = ("schedule", "warmup", "start_factor", "end_factor", "step_length", "step_ratio")
    shape: dict[str, Any] = {name: getattr(config, name) for name in names}
    shape |= {"num_steps": num_steps, "steps_per_epoch": max(1, num_steps // config.epochs)}
    return lambda step: highest * learning_rate_factor(step, **shape)


def learning_rate_factor(
    step: float,
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
    """Return the learning rate of a step / the highest learning rate.

    The factor rises linearly over `warmup`, reaches 1 and never rises again:

        rise(t) = first + (1 - first) t / T             for t < T = warmup N
        cyclic  = end + (1 - end) r                     with r = (N - t) / (N - T)
        cosine  = end + (1 - end) (1 - cos(pi r)) / 2
        step    = step_ratio ^ floor(epoch / step_length)

    Args:
        step: t, counted from 0. InfoBatch's shorter epochs also count as whole ones: each
            of their steps advances t by more than 1.
        num_steps: N, the steps of the run.
        steps_per_epoch: steps of an epoch, for the step schedule.
        schedule: how the factor falls. The cyclic schedule rises over at least one step.
        warmup: fraction of all steps over which the factor rises.
        start_factor: `first`, the factor at step 0. 0 means 1 / (T + 1), because a step with
            learning rate 0 would be wasted.
        end_factor: `end`, the factor after the last step, for the cyclic and cosine schedules.
        step_length: epochs between two falls of the step schedule, from the start of the run.
        step_ratio: factor of each fall.
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
    resolution: int,
    end_resolution: int | None = None,
    ramp: tuple[int, int] | None = None,
) -> int:
    """Return the side of the training crops of an epoch (counted from 0), in pixels.

    As in ffcv-imagenet, the side is `resolution` until the first epoch of the ramp and
    `end_resolution` from its last epoch. Between them it is interpolated and rounded to a multiple
    of 32, with ties to the even multiple. Without a ramp it is `resolution`.
    """
    if ramp is None or end_resolution is None or epoch <= ramp[0]:
        return resolution
    start, end = ramp
    if epoch >= end:
        return end_resolution
    side = resolution + (end_resolution - resolution) * (epoch - start) / (end - start)
    return round(side / _MULTIPLE) * _MULTIPLE
