"""Ordered parallel map over worker processes or threads."""

import ctypes
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pickle import PicklingError
from typing import Any, TypeVar

TASKS_PER_WORKER = 2  # one running, one queued

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_PR_SET_PDEATHSIG = 1


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
    cancels queued tasks and ends the workers; running threads are waited for.

    Worker processes are forked: `function` need not be picklable and sees the memory of this
    process, while tasks, which should be small, and results are pickled. With no workers, the
    calling thread makes the calls. The iterator raises the exceptions of `function`, and
    RuntimeError if a worker dies.
    """
    if num_workers == 0:
        yield map(function, tasks)
    elif threads:
        pool = ThreadPoolExecutor(num_workers)
        with _ended(partial(pool.shutdown, cancel_futures=True)):
            yield _results(pool, function, iter(tasks), TASKS_PER_WORKER * num_workers)
    else:
        workers = _Workers(function, num_workers)
        with _ended(workers.end):
            yield workers.results(iter(tasks))


@contextmanager
def _ended(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` after the block, without a second Ctrl-C in between."""
    try:
        yield
    finally:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            end()
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


class _Workers:
    """Forked processes, each with a pipe of its own.

    `ProcessPoolExecutor` has one pipe for all results: it waits for ever for the rest of a result
    if a worker is killed while it sends one. Here the end of a worker ends its pipe.
    """

    def __init__(self, function: Callable[[Any], Any], num_workers: int) -> None:
        context = get_context("fork")
        self._processes: list[ForkProcess] = []
        self._pipes: dict[Connection, int] = {}
        """Pipes of the workers, and how many tasks each worker has."""
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(function, theirs, os.getpid()))
            process.start()
            theirs.close()  # before the next fork, so that only the worker holds its end
            self._processes.append(process)
            self._pipes[ours] = 0

    def results(self, tasks: Iterator[Any]) -> Iterator[Any]:
        """Yield the results of tasks, in order."""
        arrived: dict[int, tuple[bool, Any]] = {}
        ahead = TASKS_PER_WORKER * len(self._processes)
        started = self._start(islice(tasks, ahead), 0)
        for number in count():
            if number == started:
                return
            while number not in arrived:
                arrived |= self._receive()
            is_result, value = arrived.pop(number)
            if not is_result:
                raise value
            yield value
            started = self._start(islice(tasks, 1), started)

    def _start(self, tasks: Iterable[Any], number: int) -> int:
        """Give tasks, the first of which is `number`, to workers. Return the next number."""
        for task in tasks:
            pipe = min(self._pipes, key=self._pipes.__getitem__)
            self._pipes[pipe] += 1
            with _naming_deaths(len(self._processes)):
                pipe.send((number, task))
            number += 1
        return number

    def _receive(self) -> dict[int, tuple[bool, Any]]:
        """Wait for a worker, and return what arrived, by the numbers of the tasks."""
        arrived = {}
        ready: list[Any] = wait([pipe for pipe, tasks in self._pipes.items() if tasks])
        for pipe in ready:
            with _naming_deaths(len(self._processes)):
                number, is_result, value = pipe.recv()
            arrived[number] = is_result, value
            self._pipes[pipe] -= 1
        return arrived

    def end(self) -> None:
        """End the processes, whatever they do."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()


@contextmanager
def _naming_deaths(num_workers: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:  # the other end of the pipe is closed
        raise RuntimeError(
            "a worker process died. If memory ran out (see the kernel's log), pass a smaller "
            f"`num_workers` than {num_workers}."
        ) from error


def _work(function: Callable[[Any], Any], pipe: Connection, parent: int) -> None:
    gc.freeze()  # the collector would write to the parent's objects and so copy their memory
    end_with_parent(parent)
    while True:
        number, task = pipe.recv()
        try:
            outcome = True, function(task)
        except Exception as error:  # it is raised in the parent
            outcome = False, error
        try:
            pipe.send((number, *outcome))
        except (TypeError, AttributeError, PicklingError) as error:  # nothing was sent
            pipe.send((number, False, RuntimeError(f"{outcome[1]!r} cannot be pickled: {error}")))


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent` ends, and leave Ctrl-C to `parent`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl took effect
