"""Threads that decode.

Compiled code runs in them without Python's lock. Numba's own threads are not used: with some of its
threading layers, two loaders in one process, or a process forked after loading, end in a crash.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def call_in_threads(function: Callable[[int], None], count: int) -> None:
    """Call a function with the numbers below `count` at the same time, and wait for all calls."""
    tasks = [_threads(os.getpid()).submit(function, number) for number in range(1, count)]
    function(0)
    for task in tasks:
        task.result()


@cache
def _threads(_process: int) -> ThreadPoolExecutor:
    """Return the threads of a process. A forked process has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), "dp4tl-decode")
