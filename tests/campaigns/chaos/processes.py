"""Processes that are forked from this one, watched, and killed."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HANG = 60.0  # seconds after which a process counts as hanging; loaded machines are slow


class Child:
    """A function that runs in a forked process with a session of its own.

    Args:
        function: what it runs. The exit status is that of SystemExit, else 0, or 70 for an
            exception, whose traceback goes to `output`.
        output: file for what it prints.
    """

    def __init__(self, function: Callable[[], Any], output: Path) -> None:
        self.output = output
        self.started = time.monotonic()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(function, output)

    def poll(self) -> int | None:
        """Return the status, negative for a signal, or None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = HANG) -> int | None:
        """Wait for the end; return the status, or None after `seconds`, and then kill the group."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if self.status is None:
            self.kill_group()
            self._reap()
            return None
        return self.status

    def kill_group(self) -> None:
        """Kill every process of the session's first group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill this process only, not the processes that it started."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def kill_a_worker(self, number: int) -> bool:
        """Kill one of the processes that it started; return False if there is none."""
        workers = [pid for pid in members(self.pid) if pid != self.pid]
        if workers:
            with suppress(ProcessLookupError):
                os.kill(workers[number % len(workers)], signal.SIGKILL)
        return bool(workers)

    def orphans(self, seconds: float = 10.0) -> list[int]:
        """Wait until no process of the session is left; return those that still are."""
        deadline = time.monotonic() + seconds
        while (left := members(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.005)
        return left

    @property
    def text(self) -> str:
        """The output that the process has printed so far."""
        return self.output.read_text(errors="replace")

    def _reap(self) -> None:
        deadline = time.monotonic() + 10
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)


def members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                # After the name in parentheses: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def _run(function: Callable[[], Any], output: Path) -> None:
    status = 70
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        function()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            threading._shutdown()  # waits as the interpreter does, and ends idle pools
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
