"""Throughput of an epoch: images per second, and the time spent waiting for the loader."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Any

import torch

from dp4tl_ffcv.utils import track


class Throughput:
    """Iterate over an epoch's batches and measure the time spent waiting for them.

    On a GPU, the waiting time of the GPU counts, by its own clock: from the end of a step to the
    arrival of the next batch. The training loop runs ahead of the GPU, so its own waiting time
    means nothing. Measuring never waits for the GPU.

    Args:
        device: the training device.
        description: text of the progress line.
        steps_after: steps of the run after this epoch.
        quiet: show no progress line.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        description: str = "",
        steps_after: int = 0,
        quiet: bool = False,
    ) -> None:
        self.device = device
        self.description = description
        self.steps_after = steps_after
        self.quiet = quiet
        self._started = 0.0
        self._steps = 0
        self._stalled = 0.0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def batches(self, loader: Iterable[Any], num_steps: int, images_per_step: int) -> Iterator[Any]:
        """Yield batches, at most as many as the run has steps left, and show a line on stderr.

        Args:
            loader: yields the batches of the epoch.
            num_steps: number of batches to expect.
            images_per_step: images of all processes in a step.
        """
        timed = self._timed(loader, num_steps + self.steps_after)
        if self.quiet:
            yield from timed
            return
        yield from track(
            timed,
            total=num_steps * images_per_step,
            description=self.description,
            unit="images",
            scale=images_per_step,
            note=lambda: self._note(num_steps),
        )

    @property
    def stalled(self) -> float:
        """Seconds of waiting for the loader; on a GPU, in the steps that the GPU has finished."""
        pending = []
        for left, arrived in self._gaps:
            if arrived.query():
                self._stalled += left.elapsed_time(arrived) / 1000
            else:
                pending.append((left, arrived))
        self._gaps = pending
        return self._stalled

    def _timed(self, loader: Iterable[Any], at_most: int) -> Iterator[Any]:
        # The chain opens the loader at the first request, so that opening counts as waiting.
        batches, on_gpu = chain.from_iterable([loader]), self.device.type == "cuda"
        self._started = time.perf_counter()
        for _ in range(at_most):
            left, waiting_since = self._event() if on_gpu else None, time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if left is not None:
                self._gaps.append((left, self._event()))
            else:
                self._stalled += time.perf_counter() - waiting_since
            self._steps += 1
            yield batch

    def _note(self, num_steps: int) -> str:
        seconds = time.perf_counter() - self._started
        left = num_steps - self._steps + self.steps_after
        end = timedelta(seconds=round(left * seconds / self._steps))
        waiting = self.stalled / seconds
        return f"{waiting:.1%} waiting for the loader, {end} to the end of the run"

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
