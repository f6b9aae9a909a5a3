"""Run the stages of a study on this machine: one process for each GPU, or for each core."""

import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any, Self

import torch

from dp4tl_ffcv.utils import end_with_parent

from ..stages import Stage
from ..work import run_stage


class Local:
    """Processes of this machine, which run one stage after the other.

    A process stays for further stages, since importing and compiling takes seconds. If one is
    killed, only its stage is lost.

    Args:
        jobs: stages at a time. None: one for each GPU, or for each core if there is no GPU.
    """

    def __init__(self, jobs: int | None = None) -> None:
        cores, self._gpus = len(os.sched_getaffinity(0)), _visible_gpus()
        self.slots = jobs or len(self._gpus) or cores
        self._threads = max(1, cores // self.slots)
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.slots):
            self._free.put(slot)
        self._pools: dict[int, ProcessPoolExecutor] = {}

    def submit(self, stage: Stage) -> Future[dict[str, Any]]:
        """Start a stage in a free process."""
        slot = self._free.get()  # waits for the callback of a stage that has just ended
        try:
            future = self._pool(slot).submit(run_stage, stage, self._threads)
        except BrokenProcessPool:  # killed since its last stage
            del self._pools[slot]
            future = self._pool(slot).submit(run_stage, stage, self._threads)
        future.add_done_callback(lambda done: self._release(slot, done))
        return future

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        if slot not in self._pools:
            gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
            arguments = os.getpid(), gpu
            self._pools[slot] = ProcessPoolExecutor(1, get_context("spawn"), _start, arguments)
        return self._pools[slot]

    def _release(self, slot: int, done: Future[dict[str, Any]]) -> None:
        if not done.cancelled() and isinstance(done.exception(), BrokenProcessPool):
            del self._pools[slot]
        self._free.put(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pools = list(self._pools.values())  # callbacks remove those that break
        if kind is not None:  # stages that run would go on for hours
            for process in [each for pool in pools for each in pool._processes.values()]:
                process.kill()  # Python 3.14 has `kill_workers`
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _visible_gpus() -> list[str]:
    """Return the GPUs of this process as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else given.split(",")[:count]
    return [name.strip() for name in names]


def _start(parent: int, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    end_with_parent(parent)
