"""The processes of a run: one, or one per GPU, started by `torchrun`.

    torchrun --nproc-per-node 8 --no-python -- dp4tl pretrain ...

With several machines, the run folder must be on storage that all of them see.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dp4tl_ffcv.utils import process_group, rank, world_size

from ..configs.common import RunConfig

# Each process keeps its own batch statistics. torch 2.9 renamed the argument.
_SYNC = "forward_sync_buffers"
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {_SYNC if _SYNC in _NAMES else "broadcast_buffers": False}


@dataclass(frozen=True)
class Processes:
    """Rank and device of this process, and operations over all processes of the run."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def batch_size(self, config: RunConfig) -> int:
        """Return the images of this process in a step.

        Raises:
            ValueError: the batch cannot be divided equally.
        """
        if config.batch_per == "process":
            return config.batch_size
        if config.batch_size % self.world_size:
            raise ValueError(
                f"`batch_size` must be a multiple of the {self.world_size} processes; got "
                f"{config.batch_size}."
            )
        return config.batch_size // self.world_size

    def sum_over(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        total = values.clone()
        if self.world_size > 1:
            distributed.all_reduce(total)
        return total

    def mean_over(self, value: Tensor) -> float:
        """Return the mean of a scalar over all processes."""
        return float(self.sum_over(value)) / self.world_size

    def share(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Return the part of `ids` (n,) for this process: each id goes to exactly one process."""
        return ids[self.rank :: self.world_size]

    def from_rank_zero(self, *numbers: int) -> list[int]:
        """Return the numbers of rank 0 on every rank."""
        values = torch.tensor(numbers)
        if self.world_size > 1:
            distributed.broadcast(values, src=0)
        return [int(value) for value in values]

    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all floating-point tensors are finite, in every process."""
        mine = [value.isfinite().all() for value in tensors if value.is_floating_point()]
        if not mine:
            return True
        return float(self.sum_over((~torch.stack(mine)).sum().float())) == 0

    def seed(self, seed: int, step: int) -> None:
        """Seed torch for a step, differently in each process.

        A resumed run then draws the same numbers as a run without interruption.
        """
        (state,) = np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return `network` with gradients that are averaged over all processes."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(
            network,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_OWN_BUFFERS,
        )

    def statistics(self, named: Iterable[tuple[str, Tensor]]) -> Tensor:
        """Return the K running means and variances among named tensors `(world_size, K)`."""
        parts = [torch.zeros(0, device=self.device)]
        parts += [tensor.detach().reshape(-1).float() for tensor in _running(named)]
        own = torch.cat(parts)
        rows = own.new_zeros((self.world_size, len(own)))
        rows[self.rank] = own
        return self.sum_over(rows)

    def set_statistics(self, named: Iterable[tuple[str, Tensor]], rows: Tensor) -> None:
        """Set the running means and variances to this rank's row, or to the mean of other rows.

        `rows` are the `statistics` of any number of processes.
        """
        own = rows[self.rank] if len(rows) == self.world_size else rows.mean(0)
        tensors = _running(named)
        values = own.split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value.view_as(tensor))

    def average_statistics(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Set the running means and variances among named tensors to their means over processes."""
        if self.world_size > 1:
            tensors = list(named)
            self.set_statistics(tensors, self.statistics(tensors).mean(0, keepdim=True))


def _running(named: Iterable[tuple[str, Tensor]]) -> list[Tensor]:
    return [tensor for name, tensor in named if name.endswith(("running_mean", "running_var"))]


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, until the block ends."""
    with process_group() as device:
        yield Processes(device, rank(), world_size())
