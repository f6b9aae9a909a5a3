"""What a run tells while it trains: rate, loader stalls and time left; JSON lines; TensorBoard."""

import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from dp4tl_ffcv.utils import RunFolder, track


class Meter:
    """Passes an epoch's batches on, and measures how long the training waits for them.

    On a GPU it is the GPU's waiting that counts: from the end of a step's work to the arrival of
    the next batch, by the GPU's own clock. The loop runs ahead of the GPU and is held back by it,
    so that its own waiting says nothing there. Neither is the GPU ever waited for.

    Args:
        device: what trains.
        description: what is going on, in a few words, for the progress line.
        steps_after: of the run, behind this epoch.
        quiet: report nothing, as all processes but one.
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
        self.seconds = 0.0
        """From the loader's opening to the end of the last step's submission."""
        self._started = 0.0
        self._steps = 0
        self._stalled = 0.0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def batches(self, loader: Iterable[Any], num_steps: int, images_per_step: int) -> Iterator[Any]:
        """Yield at most `num_steps` batches, and report on stderr how far the work has come.

        Args:
            loader: yields the batches.
            num_steps: of this epoch.
            images_per_step: over all processes.
        """
        timed = self._timed(loader, num_steps)
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
        """Seconds of waiting for the loader; of a GPU, in the steps that it has finished."""
        pending = []
        for left, arrived in self._gaps:
            if arrived.query():
                self._stalled += left.elapsed_time(arrived) / 1000
            else:
                pending.append((left, arrived))
        self._gaps = pending
        return self._stalled

    @property
    def stall_share(self) -> float:
        """That waiting as a share of the time so far."""
        return self.stalled / self.seconds if self.seconds else 0.0

    def _timed(self, loader: Iterable[Any], num_steps: int) -> Iterator[Any]:
        batches, on_gpu = _opened_at_first(loader), self.device.type == "cuda"
        self._started = time.perf_counter()
        for _ in range(num_steps):
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
            self.seconds = time.perf_counter() - self._started

    def _note(self, num_steps: int) -> str:
        self.seconds = time.perf_counter() - self._started
        left = num_steps - self._steps + self.steps_after
        seconds = left * self.seconds / self._steps
        end = timedelta(seconds=round(seconds))
        return f"{self.stall_share:.1%} waiting for the loader, {end} to the end of the run"

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _opened_at_first(loader: Iterable[Any]) -> Iterator[Any]:
    """Open a loader with the first request, so that this is timed as part of it."""
    yield from loader


class Journal:
    """The run folder's `log.jsonl`, and the same numbers for TensorBoard where it is installed.

    Args:
        run: the folder; its `tensorboard` folder holds the curves.
        active: False writes nothing, as in all processes but one.
        first_step: where the run goes on; curves of later steps, of a killed run, are dropped.
    """

    def __init__(self, run: RunFolder, *, active: bool = True, first_step: int = 0) -> None:
        self._run = run
        self._active = active
        self._curves = _tensorboard(run, first_step) if active else None
        self._losses: list[tuple[int, Tensor, torch.cuda.Event | None]] = []

    def write(self, event: str, step: int, **numbers: Any) -> None:
        """Add a line, and a point to the curve of each number."""
        if not self._active:
            return
        self._run.log({"event": event, "step": step, **numbers})
        if self._curves is not None:
            for name, number in numbers.items():
                if isinstance(number, int | float):
                    self._curves.add_scalar(f"{event}/{name}", number, step)

    def loss(self, step: int, loss: Tensor) -> None:
        """Note a step's loss, which is written when it has come over from the GPU."""
        if not self._active:
            return
        self.flush(wait=False)
        value, arrived = loss.detach().to("cpu", non_blocking=True, copy=True), None
        if loss.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._losses.append((step, value, arrived))

    def flush(self, *, wait: bool = True) -> None:
        """Write the losses that have come over; with `wait`, all."""
        while self._losses:
            step, value, arrived = self._losses[0]
            if arrived is not None and not wait and not arrived.query():
                return
            if arrived is not None:
                arrived.synchronize()
            del self._losses[0]
            self.write("step", step, loss=float(value))

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        if self._curves is not None:
            self._curves.close()


def _tensorboard(run: RunFolder, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step)
