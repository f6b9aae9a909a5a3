"""The whole state of an unfinished run in one file, so that a killed run goes on where it was.

Nothing random is part of it: an epoch's order and crops follow from the loader's seed and the
epoch, and all else that an epoch draws from the seed that `Processes.seed` sets at its start.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dp4tl_ffcv.utils import atomic_open

from .processes import Processes
from .progress import Meter


class Stateful(Protocol):
    """A part of a run that has a state: model, optimiser, averaged weights, loss scale."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take a state over."""


@dataclass
class Progress:
    """How far a run has come, over all its sessions."""

    epoch: int = 0
    """Epochs that are finished."""
    step: int = 0
    """Optimiser steps that are taken."""
    images: int = 0
    """Images that they have seen, in all processes."""
    seconds: float = 0.0
    """Seconds of training, without set-up and validation."""
    stalled: float = 0.0
    """Seconds of these that the training has waited for its loader."""
    warm_up_seconds: float = 0.0
    """Seconds of set-up at first use."""
    loss: float = float("nan")
    """Mean loss of the last epoch."""

    def end_epoch(
        self, total_loss: Tensor, num_steps: int, started: float, meter: Meter, group: Processes
    ) -> None:
        """Count an epoch whose steps are taken, over all processes; all of them call this.

        Args:
            total_loss: sum of the losses of this process's steps.
            num_steps: of the epoch.
            started: when it began, by `time.perf_counter`.
            meter: that its batches went through.
            group: the processes.
        """
        self.loss = float(group.sum_over(total_loss)) / group.world / num_steps
        self.seconds += time.perf_counter() - started  # the line above has waited for the GPU
        stalled = torch.tensor(meter.stalled, dtype=torch.float64, device=group.device)
        self.stalled += float(group.sum_over(stalled)) / group.world
        self.epoch += 1

    def check_loss(self, lr: float) -> None:
        """Raise a ValueError that names the learning rate if the loss is no longer finite."""
        if not math.isfinite(self.loss):
            raise ValueError(f"`lr` must keep the loss finite; got {lr}. Lower it.")

    def rates(self) -> dict[str, float]:
        """Return images per second, and the share of the time that the loader was waited for."""
        return {
            "images_per_second": self.images / self.seconds,
            "stall_share": self.stalled / self.seconds,
        }


class Snapshot:
    """A file with the state of everything that changes in a run.

    Args:
        path: the file.
        parts: what has a state, by name.
    """

    def __init__(self, path: Path, parts: Mapping[str, Stateful]) -> None:
        self.path = path
        self.parts = dict(parts)

    def save(self, progress: Progress) -> None:
        """Replace the file atomically; a run that is killed meanwhile keeps the old one."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_open(self.path) as stream:
            torch.save({"progress": asdict(progress), "states": states}, stream)

    def load(self) -> Progress:
        """Give every part its saved state, and return how far the run had come.

        Raises:
            ValueError: the file is damaged, or of a run with other parts.
        """
        try:
            values = torch.load(self.path, map_location="cpu", weights_only=True)
            progress, states = Progress(**values["progress"]), values["states"]
            if states.keys() != self.parts.keys():
                raise KeyError(f"it has {sorted(states)}")
            for name, part in self.parts.items():
                part.load_state_dict(states[name])
        except OSError:
            raise
        except Exception as error:  # what torch raises on a damaged file is not documented
            raise ValueError(
                f"`resume` must find the state of this very run; got {str(self.path)!r}, which "
                f"does not fit ({type(error).__name__}: {error}). Start over without resuming."
            ) from error
        return progress

    def remove(self) -> None:
        """Delete the file, once the run is finished."""
        self.path.unlink(missing_ok=True)
