"""Progress of a run: its steps, images, times and losses."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Counters:
    """Progress of a run, including the part before a restart."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Optimiser steps."""
    images: int = 0
    """Images in these steps, over all processes."""
    seconds: float = 0.0
    """Training time, without set-up and validation."""
    stalled: float = 0.0
    """Part of `seconds` spent waiting for the loader: mean over the processes."""
    warm_up_seconds: float = 0.0
    """Time to compile and to set up at first use."""
    loss: float = float("nan")
    """Mean loss of the last epoch."""
    first_step: int = 0
    """Step with which the current epoch began."""
    loss_sum: float = 0.0
    """Sum of the losses of the current epoch: mean over the processes."""

    def end_epoch(self) -> None:
        """Count an epoch, and take the mean of its losses."""
        self.loss = self.loss_sum / (self.step - self.first_step)
        self.epoch += 1
        self.first_step, self.loss_sum = self.step, 0.0

    def rates(self) -> dict[str, float]:
        """Return images per second, and the fraction of time spent waiting for the loader."""
        return {
            "images_per_second": self.images / self.seconds,
            "stall_share": self.stalled / self.seconds,
        }

    def result(self, work: str) -> dict[str, Any]:
        """Return what `result.json` reports of a run, with its time as `WORK_seconds`."""
        return {
            "steps": self.step,
            "images": self.images,
            f"{work}_seconds": self.seconds,
            "warm_up_seconds": self.warm_up_seconds,
            **self.rates(),
            "loss": self.loss,
        }

    def __str__(self) -> str:
        rates = self.rates()
        return (
            f"{self.step} steps, {self.seconds:.1f} s, {rates['images_per_second']:.0f} images/s, "
            f"{rates['stall_share']:.1%} of the time waiting for the loader, loss {self.loss:.3f}"
        )
