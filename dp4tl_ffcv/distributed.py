"""What the processes that `torchrun` starts need to share a piece of work."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from .scoring.surrogate.models import best_device

# A process waits for the others while they finish their shares, whatever these take.
_PATIENCE = timedelta(days=7)

Result = TypeVar("Result")


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did, and yield this one's device.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    device = best_device()
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"`LOCAL_RANK` must be below the number of GPUs, {torch.cuda.device_count()}; got "
                f"{local}. Start one process for each GPU: --nproc-per-node."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or distributed.is_initialized():
        yield device
        return
    # Messages only, no tensors of the model: gloo does for both kinds of devices.
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def wait_for_all() -> None:
    """Return when every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def in_first(action: Callable[[], Result]) -> Result:
    """Call `action` in the first process, and return its result in all; if it fails, all do.

    Raises:
        ValueError: the action failed in another process; says how.
    """
    rank, world = rank_and_world()
    if world == 1:
        return action()
    message: list[Any] = [None, None]
    failure: Exception | None = None
    if rank == 0:
        try:
            message[0] = action()
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure, message[1] = error, str(error)
    # From memory, wherever the tensors of the group are.
    distributed.broadcast_object_list(message, src=0, device=torch.device("cpu"))
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise ValueError(message[1])
    result: Result = message[0]
    return result
