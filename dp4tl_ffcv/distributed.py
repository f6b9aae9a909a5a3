"""Processes that `torchrun` starts: their ranks and devices, and work that they share."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from .torchrun import torchrun

# How long a process waits for the others, which may be compiling or have slower disks. After a
# failure torchrun stops all processes, so none waits this long for a failed one.
_TIMEOUT = timedelta(days=1)

# What gloo, NCCL and their store say of a process that has ended.
_LOST = re.compile(
    r"connection (was )?(closed|reset)|broken pipe|remote process exited|ncclRemote", re.I
)

Result = TypeVar("Result")


def best_device() -> torch.device:
    """Return the GPU if torch can use one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if any, and yield the device of this process.

    A process group that the caller has initialised is used, and left initialised.

    Raises:
        ValueError: this machine runs more processes than it has GPUs.
        ConnectionError: another process failed or was killed.
    """
    device = best_device()
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if torchrun().local_rank >= count:
            raise ValueError(
                f"more processes than GPUs: this machine has {count}. Start one process for each "
                f"GPU, with --nproc-per-node {count}."
            )
        device = torch.device("cuda", torchrun().local_rank)
        torch.cuda.set_device(device)
    joins = torchrun().world_size > 1 and not distributed.is_initialized()
    if joins:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield device
    except RuntimeError as error:
        if torchrun().world_size > 1 and _LOST.search(str(error)):
            raise ConnectionError(
                f"rank {torchrun().rank} of {torchrun().world_size} lost the connection to another "
                "rank, which failed or was killed. See its output, and run all again to continue."
            ) from error
        raise
    # Not after an exception: leaving the group would wait for the other processes, which wait for
    # this one. torchrun ends them when this process ends.
    if joins:
        _wait_for_gloo()
        distributed.destroy_process_group()


def rank() -> int:
    """Return the rank of this process, 0 without `torchrun`."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Wait until every process has called this function."""
    if distributed.is_initialized():
        distributed.barrier()


def on_rank_zero(action: Callable[[], Result]) -> Result:
    """Call `action` on rank 0 and return its result on every rank.

    If `action` raises, rank 0 raises the same exception, and the other ranks raise a ValueError
    with its message.
    """
    if world_size() == 1:
        return action()
    message: list[Any] = [None, None]
    failure: Exception | None = None
    if rank() == 0:
        try:
            message[0] = action()
        except Exception as error:  # the other ranks must hear of any failure
            failure, message[1] = error, str(error)
    distributed.broadcast_object_list(message, src=0, device=torch.device("cpu"))
    if failure is not None:
        raise failure
    result, error_text = message
    if error_text is not None:
        raise ValueError(error_text)
    return result  # type: ignore[no-any-return]


def _wait_for_gloo() -> None:
    """Wait until gloo's threads have released the tensors of the last operation.

    The threads need the GIL for that, and a thread that waits for the GIL at exit aborts the
    process. Leaving a group does not end its threads once DistributedDataParallel has used it.
    """
    idle, deadline = 0, time.monotonic() + 10
    # Three times: a thread that waits for the GIL looks idle, but gets it during the next sleep.
    while idle < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        busy = any(map(_is_busy_gloo_thread, Path("/proc/self/task").glob("*/stat")))
        idle = 0 if busy else idle + 1


def _is_busy_gloo_thread(stat: Path) -> bool:
    with suppress(OSError):  # the thread has ended
        _, _, rest = stat.read_text().partition("(pt_gloo_runloop) ")
        return rest[:1] not in ("", "S")  # S: sleeping
    return False
