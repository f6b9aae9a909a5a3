"""Threads that decode during an epoch.

Compiled code runs in them without Python's lock. Numba's own threads are not used: with some of its
threading layers, two loaders in one process, or a process forked after loading, end in a crash.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

_of_this_thread = threading.local()


@contextmanager
def decoding_threads(count: int) -> Iterator[None]:
    """Start threads, at most `count`, for the calls of `call_in_threads` in the block."""
    with ThreadPoolExecutor(count, "dp4tl-decode") as threads:
        _of_this_thread.threads = threads
        try:
            yield
        finally:
            del _of_this_thread.threads


def call_in_threads(function: Callable[[int], None], count: int) -> None:
    """Call a function with the numbers below `count`, at the same time in `decoding_threads`."""
    threads = getattr(_of_this_thread, "threads", None)
    if threads is None:
        for number in range(count):
            function(number)
        return
    tasks = [threads.submit(function, number) for number in range(1, count)]
    try:
        function(0)
    finally:
        wait(tasks)  # they write to memory that an error frees
    for task in tasks:
        task.result()
