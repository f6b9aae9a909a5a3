"""Run each side of a benchmark in its own process."""

import ctypes
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import progress

# Idle OpenMP threads spin only briefly, so that the other side gets the cores.
SPIN_COUNT = "10000"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Worker:
    """A process that creates an object and calls its methods on request.

    The process leads a session, so that its child processes can be found and end with it. Its
    output is shown only if it fails.

    Args:
        make: function or class of an importable module.
        *args: arguments of `make`.
    """

    patience = 600.0
    """Seconds to wait for an answer."""

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115  # closed by `close`
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.session: int = self._pool.submit(_lead_session, self._log.name).result()
        """Session id of the process and of the processes that it starts."""
        self._made = self._pool.submit(_make, make, args)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def wait(self) -> "Worker":
        self._answer("start", self._made)
        return self

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.wait()
        return self._answer(method, self._pool.submit(_call, method, args, kwargs))

    def close(self) -> None:
        """End the process, without waiting for its threads."""
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.session, signal.SIGKILL)
        self._pool.shutdown()
        self._log.close()

    def _answer(self, method: str, future: Future[Any]) -> Any:
        try:
            return future.result(self.patience)
        except Exception as error:
            progress(Path(self._log.name).read_text(errors="replace")[-4000:])
            error.add_note(f"A worker failed in {method!r}; its output is above.")
            raise


@contextmanager
def workers(*makes: Callable[..., Any]) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        started = [stack.enter_context(Worker(make)) for make in makes]
        yield [worker.wait() for worker in started]


def _lead_session(log: str) -> int:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans stay in the tree that is timed
    # This process was spawned, but its own children start by the usual method.
    multiprocessing.set_start_method(None, force=True)
    with open(log, "ab", buffering=0) as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    return os.getpid()


def _make(make: Callable[..., Any], args: Any) -> None:
    global _served
    _served = make(*args)


def _call(method: str, args: Any, kwargs: Any) -> Any:
    return getattr(_served, method)(*args, **kwargs)
