"""Loss and times of an epoch, added to the counters of a run."""

import time

import torch
from torch import Tensor

from .counters import Counters
from .processes import Processes
from .throughput import Throughput


class EpochSums:
    """Sums over the steps of an epoch. The loss stays on the device until `update`.

    Args:
        processes: processes of the run.
        counters: the counters that `update` changes. Sums of the epoch's part before a restart are
            in them.
        throughput: the loading of the epoch's batches; None if nothing is loaded.
    """

    def __init__(
        self, processes: Processes, counters: Counters, throughput: Throughput | None = None
    ) -> None:
        self._processes = processes
        self._counters = counters
        self._throughput = throughput
        self._loss = torch.tensor(counters.loss_sum, device=processes.device)
        self._stalled_before = counters.stalled
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time since the last update."""
        self._started = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Add the loss of a step, without waiting for it."""
        self._loss += loss

    def update(self) -> None:
        """Add the time and the losses since the last update to the counters, over all processes."""
        counters, processes = self._counters, self._processes
        counters.loss_sum = processes.mean_over(self._loss)
        counters.seconds += time.perf_counter() - self._started  # the mean has waited for the GPU
        self.restart_clock()
        seconds = self._throughput.stalled if self._throughput else 0.0
        stalled = torch.tensor(seconds, dtype=torch.float64, device=processes.device)
        counters.stalled = self._stalled_before + processes.mean_over(stalled)
