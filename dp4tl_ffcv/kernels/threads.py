"""Threads that run compiled code.

Compiled code runs without Python's lock, so Python's threads can share its work. Numba's own
threads are not used: with some of its threading layers, two threads that call a kernel at the same
time, or a process forked after a kernel has run, end in a crash.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from numba import config
from threadpoolctl import threadpool_limits

from ..validate import resolve_num_workers

_MOST = int(config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]

_others: ThreadPoolExecutor  # kept: idle threads begin sooner than new ones
_blas: AbstractContextManager[Any]  # a lock


def _start_afresh() -> None:
    # A forked process has none of the threads, and one of them may hold the lock.
    global _others, _blas
    _others = ThreadPoolExecutor(_MOST, "kernel")
    _blas = threading.RLock()


_start_afresh()
os.register_at_fork(after_in_child=_start_afresh)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let each call of BLAS in the block use one thread, which fixes the bits of its results.

    The limit holds for all of the process, so one thread at a time may set it. Others wait.
    """
    with _blas, threadpool_limits(1, user_api="blas"):
        yield


def num_threads(num_workers: int | None = None) -> int:
    """Return a number of threads, at most numba's limit (`NUMBA_NUM_THREADS`).

    Args:
        num_workers: number of threads. None uses all cores, shared among the processes that
            `torchrun` started on this machine.
    """
    return min(resolve_num_workers(num_workers), _MOST)


def threads_for(size: int, least: int) -> int:
    """Return the number of threads for `size` units of work, at least `least` units for each."""
    most = size // least
    return min(most, num_threads()) if most > 1 else 1


def split(size: int, least: int) -> list[slice]:
    """Split `range(size)` into one slice per thread, of at least `least` numbers if several."""
    count = threads_for(size, least)
    return [slice(at * size // count, (at + 1) * size // count) for at in range(count)]


def call_in_threads(
    function: Callable[[int], None],
    count: int,
    threads: int | None = None,
) -> None:
    """Call a function with each number below `count`. Each thread takes the next number.

    An exception of the function is raised after the calls that are running have returned. No other
    call starts.

    Args:
        function: takes a number.
        count: number of calls.
        threads: number of threads, including the calling one. By default, one for each call.
    """
    threads = count if threads is None else min(count, threads)
    if threads <= 1:
        for number in range(count):
            function(number)
        return
    numbers = iter(range(count))

    def take() -> None:
        try:
            for number in numbers:
                function(number)
        except BaseException:
            for _ in numbers:
                pass  # leave none to the other threads
            raise

    tasks: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # no thread can start: fewer do the work
            for _ in range(1, threads):
                tasks.append(_others.submit(take))
        take()
    finally:
        # Those that run write to memory that an error frees. The others have nothing left to do.
        tasks = [task for task in tasks if not task.cancel()]
        wait(tasks)
    for task in tasks:
        task.result()
