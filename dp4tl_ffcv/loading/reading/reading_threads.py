"""Threads that read the bytes of an epoch, and the limit for reads that make no progress.

A thread in a system call cannot be stopped while a disk or a server does not answer. Therefore
nothing waits for such a thread without a limit. It is a daemon, so that the interpreter can exit,
and it keeps its file open and its memory valid until the system call returns.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

# SSDs and network disks need several requests at the same time.
READING_THREADS = 16
STALLED_AFTER = 10.0  # seconds without a read that ends
_CHECKS = 20  # of the progress, until a read counts as stalled

# Columns of a thread's state: offset that it reads, or -1; reads that have returned; whether to
# stop before the next read.
OFFSET, RETURNED, STOPS, STATE_COLUMNS = 0, 1, 2, 3

_Task = tuple[Future[None], Callable[..., None], tuple[Any, ...]]


class ReadingThreads:
    """Threads for the reads of an epoch, at most `READING_THREADS`. They start when needed.

    Args:
        timeout: seconds without progress of any thread after which reading counts as stalled. None
            waits for ever.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._state = np.zeros((READING_THREADS, STATE_COLUMNS), dtype=np.int64)
        self._state[:, OFFSET] = -1
        self._has_stalled = self._stops_waiting = False

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Call a function in a thread, with these arguments and the state of the thread."""
        task: Future[None] = Future()
        self._tasks.put((task, function, arguments))
        number = len(self._threads)
        if number < READING_THREADS and not self._tasks.empty():
            shared = self._tasks, self._state[number]
            thread = threading.Thread(target=_work, args=shared, name="dp4tl-read", daemon=True)
            self._threads.append(thread)
            thread.start()
        return task

    def wait(self, task: Future[None]) -> bool:
        """Wait until a task has ended. Return False if threads stall, or if no task is wanted."""
        ended = self._ends(lambda seconds: bool(wait([task], seconds).done), self._timeout)
        self._has_stalled = not ended and not self._stops_waiting
        return ended

    def stop_waiting(self) -> None:
        """Let `wait` return in another thread: no task is wanted."""
        self._stops_waiting = True

    def stop(self) -> bool:
        """Cancel the tasks, and wait for reads that have begun; return False if they stall."""
        self._state[:, STOPS] = 1
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        if self._has_stalled:
            return not any(thread.is_alive() for thread in self._threads)
        self._stops_waiting = False
        limit = min(self._timeout or STALLED_AFTER, STALLED_AFTER)
        return all(self._ends(partial(_has_ended, each), limit) for each in self._threads)

    @property
    def stalled_at(self) -> int:
        """Lowest offset that a thread is reading; 0 if none is."""
        offsets = self._state[:, OFFSET]
        return int(min(offsets[offsets >= 0], default=0))

    def _ends(self, ends_within: Callable[[float], bool], limit: float | None) -> bool:
        """Wait until `ends_within(seconds)`; return False if no read returns for `limit` seconds.

        Checks are counted instead of seconds, because the process itself may be stopped.
        """
        quiet, before = 0, self._num_returned
        while quiet < _CHECKS and not self._stops_waiting:
            if ends_within((limit or STALLED_AFTER) / _CHECKS):
                return True
            now = self._num_returned
            quiet = quiet + 1 if now == before and limit is not None else 0
            before = now
        return False

    @property
    def _num_returned(self) -> int:
        return int(self._state[:, RETURNED].sum())


def _work(tasks: "SimpleQueue[_Task | None]", state: NDArray[np.int64]) -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        try:
            function(*arguments, state)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        del task, future, function, arguments  # an idle thread keeps no memory


def _has_ended(thread: threading.Thread, seconds: float) -> bool:
    thread.join(seconds)
    return not thread.is_alive()
