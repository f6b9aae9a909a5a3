"""The log of a run: JSON lines, and curves for TensorBoard."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp4tl_ffcv.utils import RunFolder, atomic_open, open_file


class RunLog:
    """Writes `log.jsonl` of a run folder, and the same numbers for TensorBoard if installed.

    Args:
        folder: the run folder. The curves are in its subfolder `tensorboard`.
        active: False writes nothing, as on all ranks but 0.
        first_step: step at which the run continues. Later steps of a killed run are dropped.
    """

    def __init__(self, folder: RunFolder, *, active: bool = True, first_step: int = 0) -> None:
        self._folder = folder
        self._active = active
        self._curves: Any = None
        if active:
            _drop_later_rows(folder.path / "log.jsonl", first_step)
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                curves = str(folder.path / "tensorboard")
                self._curves = SummaryWriter(curves, purge_step=first_step + 1)
        self._losses: list[tuple[int, Tensor, torch.cuda.Event | None]] = []

    def write(self, event: str, step: int, **numbers: Any) -> None:
        """Write a line, and a point on the curve of each number."""
        if not self._active:
            return
        self._folder.log({"event": event, "step": step, **numbers})
        if self._curves is not None:
            for name, number in numbers.items():
                if isinstance(number, int | float):
                    self._curves.add_scalar(f"{event}/{name}", number, step)

    def loss(self, step: int, loss: Tensor) -> None:
        """Write the loss of a step as soon as the GPU has computed it, without waiting."""
        if not self._active:
            return
        self.flush(wait=False)
        value, arrived = loss.detach().to("cpu", non_blocking=True, copy=True), None
        if loss.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._losses.append((step, value, arrived))

    def flush(self, *, wait: bool = True) -> None:
        """Write the losses that have arrived from the GPU; with `wait`, all losses."""
        while self._losses:
            step, value, arrived = self._losses[0]
            if arrived is not None and not wait and not arrived.query():
                return
            if arrived is not None:
                arrived.synchronize()
            del self._losses[0]
            self.write("step", step, loss=float(value))

    def close(self) -> None:
        """Write the remaining losses and close the curves."""
        self.flush()
        if self._curves is not None:
            self._curves.close()


def _drop_later_rows(path: Path, step: int) -> None:
    """Delete the rows of later steps from the log, atomically.

    A killed run logs steps whose state it has not saved. The resumed run takes and logs them again.
    """
    with open_file(path) as stream:
        lines = stream.read().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        with atomic_open(path) as stream:
            stream.writelines(kept)


def _step_of(line: bytes) -> float:
    """Return the step of a row, -1 if it has none, and infinity for a damaged row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = row.get("step", -1) if isinstance(row, dict) else math.inf
    return step if isinstance(step, int | float) else math.inf
