"""Call a function in processes of its own, and hand its results on in order."""

import ctypes
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

TASKS_PER_WORKER = 2  # one at work, one in waiting

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_function: Callable[[Any], Any]  # in a worker process


def check_num_workers(num_workers: int | None) -> int:
    """Return the number of processes that is meant: None is one per core that this one may use.

    Raises:
        ValueError: it is negative.
    """
    if num_workers is None:
        return len(os.sched_getaffinity(0))
    if num_workers < 0:
        raise ValueError(
            f"`num_workers` must be at least 0; got {num_workers}. 0 works in this process, None "
            "takes one process per core."
        )
    return num_workers


def map_ordered(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], num_workers: int
) -> Generator[_Result, None, None]:
    """Yield `function(task)` for each task in order, `TASKS_PER_WORKER` of them ahead.

    The processes are forked, so that `function` need not be picklable, sees what this process has
    imported and shares its memory; tasks and results are pickled. With 0 workers the calls are
    made here.

    Raises:
        RuntimeError: a process died. Exceptions of `function` are raised as they are.
    """
    if num_workers == 0:
        yield from map(function, tasks)
        return
    remaining = iter(tasks)
    initial, ahead = (function, os.getpid()), TASKS_PER_WORKER * num_workers
    pool = ProcessPoolExecutor(num_workers, get_context("fork"), _start, initial)
    waiting: deque[Future[_Result]] = deque()
    try:
        waiting.extend(pool.submit(_call, task) for task in islice(remaining, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_call, task) for task in islice(remaining, 1))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"`num_workers` must be what memory allows; got {num_workers}, and a worker process "
            "died. Look for what killed it (the kernel's log tells of memory), or pass fewer."
        ) from error
    finally:
        # A second Ctrl-C in here would leave processes behind that wait for ever.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(function: Callable[[Any], Any], parent: int) -> None:
    """Make ready a worker process."""
    global _function
    _function = function
    gc.freeze()  # looking at what is the parent's would copy the memory that it lies in
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it was killed before we asked for that


def _call(task: Any) -> Any:
    return _function(task)
