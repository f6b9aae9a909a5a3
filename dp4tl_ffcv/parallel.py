"""Ordered parallel map over worker processes or threads."""

import ctypes
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

TASKS_PER_WORKER = 2  # one running, one queued

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_PR_SET_PDEATHSIG = 1

_function: Callable[[Any], Any]  # set in each worker process


@contextmanager
def map_ordered(
    function: Callable[[_Task], _Result],
    tasks: Iterable[_Task],
    num_workers: int,
    *,
    threads: bool = False,
) -> Iterator[Iterator[_Result]]:
    """Call a function on every task in parallel; yield an iterator over the results, in order.

    At most `TASKS_PER_WORKER` tasks per worker are started ahead of the consumer. Leaving the block
    cancels queued tasks, waits for running tasks and ends the workers.

    Worker processes are forked: `function` need not be picklable and sees the memory of this
    process, while tasks and results are pickled. With no workers, the calling thread makes the
    calls. The iterator raises the exceptions of `function`, and RuntimeError if a worker dies.
    """
    if num_workers == 0:
        yield map(function, tasks)
        return
    pool: Executor
    if threads:
        pool, call = ThreadPoolExecutor(num_workers), function
    else:
        initial = (function, os.getpid())
        pool = ProcessPoolExecutor(num_workers, get_context("fork"), _start, initial)
        call = _call
    try:
        yield _results(pool, call, iter(tasks), TASKS_PER_WORKER * num_workers)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process died. If memory ran out (see the kernel's log), pass a smaller "
            f"`num_workers` than {num_workers}."
        ) from error
    finally:
        # A second Ctrl-C during the shutdown would leave worker processes behind.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _results(
    pool: Executor, call: Callable[[_Task], _Result], tasks: Iterator[_Task], ahead: int
) -> Iterator[_Result]:
    waiting: deque[Future[_Result]] = deque()
    waiting.extend(pool.submit(call, task) for task in islice(tasks, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(call, task) for task in islice(tasks, 1))


def _start(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    gc.freeze()  # the collector would write to the parent's objects and so copy their memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends us
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl took effect


def _call(task: Any) -> Any:
    return _function(task)
