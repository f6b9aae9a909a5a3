"""The processes of a run: one, or those that `torchrun` starts, one for each GPU.

    torchrun --nproc-per-node 8 -m -- train.pretrain ...

On several machines the run folder must lie where all of them see it.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dp4tl_ffcv.utils import on_rank_zero, process_group, rank, world_size

# Newer torch warns of the older name.
_SYNC = "forward_sync_buffers"
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {_SYNC if _SYNC in _NAMES else "broadcast_buffers": False}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run, and what they do together."""

    device: torch.device
    """Where this process computes."""
    rank: int = 0
    """Its number."""
    world: int = 1
    """How many there are."""

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.rank == 0

    def threads(self, num_workers: int) -> int:
        """Return the loading threads of this process: for -1 its part of the machine's cores."""
        if num_workers != -1:
            return num_workers
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
        return max(1, len(os.sched_getaffinity(0)) // neighbours)

    def per_process(self, batch_size: int) -> int:
        """Return a process's part of a batch that all of them make together.

        Raises:
            ValueError: the processes cannot have equal parts.
        """
        if batch_size % self.world:
            raise ValueError(
                f"`batch_size` must divide by the {self.world} processes; got {batch_size}. "
                "Choose a multiple."
            )
        return batch_size // self.world

    def sum_over(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in each of them."""
        total = values.clone()
        if self.world > 1:
            distributed.all_reduce(total)
        return total

    def share(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Return this process's part of `ids` (n,): each id is in one part, and none is added.

        A part is empty where there are fewer ids than processes.
        """
        return ids[self.rank :: self.world]

    def seed(self, seed: int, epoch: int) -> None:
        """Seed torch for an epoch, in each process differently.

        What an epoch draws then depends on nothing that came before, so that a run that is resumed
        draws the same.
        """
        (state,) = np.random.SeedSequence((seed, epoch, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state))

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return `network` so that its gradients are the mean over all processes.

        Batch statistics stay those of each process: see `average`.
        """
        if self.world == 1:
            return network
        return DistributedDataParallel(
            network,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_OWN_BUFFERS,
        )

    def average(self, tensors: list[Tensor]) -> None:
        """Set each tensor to its mean over all processes, such as running statistics."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        distributed.all_reduce(flat)
        means = (flat / self.world).split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.copy_(mean.view_as(tensor))

    def in_main(self, action: Callable[[], Result]) -> Result:
        """Call `action` in the main process, and return its result in all; if it fails, all do.

        Raises:
            ValueError: the action failed in the main process, of which this is another.
        """
        return on_rank_zero(action)


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, until the block ends."""
    with process_group() as device:
        yield Processes(device, rank(), world_size())
