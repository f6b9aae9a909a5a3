"""Run each side of a benchmark in its own process."""

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import progress

PATIENCE = 600.0  # seconds
# Idle OpenMP threads spin only briefly, so that the other side gets the cores.
SPIN_COUNT = "10000"


class Worker:
    """A process that creates an object and calls its methods on request.

    The process leads a session, so that its child processes can be found and end with it. Its
    output is shown only if it fails.

    Args:
        make: function or class of an importable module.
        *args: arguments of `make`.
        patience: seconds to wait for an answer.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, patience: float = PATIENCE) -> None:
        self.patience = patience
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115  # closed by `close`
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._log.name, make, args)
        # A daemon could not start processes. This one ends when the connection closes.
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()
        self._ready = False

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def session(self) -> int:
        """Session id of the process and of the processes that it starts."""
        return self._process.pid or 0

    def wait(self) -> "Worker":
        """Wait until the object exists."""
        if not self._ready:
            self._answer("start")
            self._ready = True
        return self

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the object and return its result.

        If the process fails, a RuntimeError is raised and the end of its output is on stderr.
        """
        self.wait()
        self._connection.send((method, args, kwargs))
        return self._answer(method)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            with suppress(ProcessLookupError):  # the session may not exist yet
                os.killpg(self.session, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        self._log.close()

    def _answer(self, method: str) -> Any:
        try:
            if not self._connection.poll(self.patience):
                raise RuntimeError(f"no answer to {method!r} from a worker in {self.patience:g} s")
            failed, result = self._connection.recv()
        except (EOFError, ConnectionResetError):
            failed, result = True, "the process ended"
        if failed:
            progress(Path(self._log.name).read_text(errors="replace")[-4000:])
            raise RuntimeError(f"a worker failed in {method!r}: {result}; its output is above")
        return result


def _serve(connection: Connection, log: str, make: Callable[..., Any], args: Any) -> None:
    os.setsid()
    # This process was spawned, but its own children start by the usual method.
    multiprocessing.set_start_method(None, force=True)
    with open(log, "ab", buffering=0) as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    served = None
    try:
        served = make(*args)
        connection.send((False, None))
        while True:
            method, arguments, keywords = connection.recv()
            connection.send((False, getattr(served, method)(*arguments, **keywords)))
    except EOFError:
        pass
    except Exception as error:
        traceback.print_exc()
        connection.send((True, f"{type(error).__name__}: {error}"))
    os._exit(0)  # leaked threads must not keep the process alive
