"""Start, measure, suspend and end the processes of a peer."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from ctypes.util import find_library
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from benchmarks.harness.timing import Timing, tree_seconds
from benchmarks.peers import sides

ROOT = Path(__file__).resolve().parents[2]
OURS = "ours"
CORE = max(os.sched_getaffinity(0))
"""The core of all peers. This process measures on another, if there is one."""


class Peer:
    """A module of `sides`, or of another package."""

    def __init__(self, name: str, package: str = sides.__name__) -> None:
        self.name = name
        self.module: Any = import_module(f"{package}.{name}")

    @cached_property
    def title(self) -> str:
        """Name and version."""
        if self.name == OURS:
            return "PrunedLoader"
        return f"{self.name} ({self.module.DISTRIBUTION} {version(self.module.DISTRIBUTION)})"

    @property
    def missing(self) -> list[str]:
        """Modules and libraries of the system that are not installed."""
        modules = [name for name in self.module.REQUIRES if not _is_installed(name)]
        libraries = getattr(self.module, "LIBRARIES", ())
        return [*modules, *(f"lib{name}" for name in libraries if not find_library(name))]

    def run(self, command: str, job_file: Path) -> None:
        """Run one command to its end. RuntimeError if it fails."""
        with Process(self, job_file, command) as process:
            process.answer()

    @property
    def prepares(self) -> bool:
        return hasattr(self.module, "prepare")


class Process:
    """A process of a peer, on one core, with a session of its own."""

    def __init__(self, peer: Peer, job_file: Path, command: str = "load") -> None:
        self.peer = peer
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed at the exit
        module = peer.module.__name__
        arguments = ["-m", "benchmarks.peers.process", module, str(job_file), str(CORE)]
        self._started = time.perf_counter()
        self._child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.session = self._child.pid
        self._ask(command)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.session, signal.SIGKILL)
        self._child.communicate()
        self._log.close()

    def first_batch(self) -> Timing:
        """Wait for the first batch. Return the seconds since the start of Python."""
        cpu = self.answer()["cpu"]
        return Timing(time.perf_counter() - self._started, cpu)

    def finish_epoch(self) -> None:
        """Wait for the rest of the first epoch."""
        self.answer()
        self._cpu = tree_seconds(self.session)

    def suspend(self) -> None:
        """Stop all threads between two epochs, so that nothing is prefetched unmeasured."""
        os.killpg(self.session, signal.SIGSTOP)

    def epoch(self) -> Timing:
        """Resume, load an epoch and suspend. Return its seconds, with what was prefetched."""
        os.killpg(self.session, signal.SIGCONT)
        self._ask("epoch")
        wall, before = self.answer()["wall"], self._cpu
        self._cpu = tree_seconds(self.session)
        self.suspend()
        return Timing(wall, self._cpu - before)

    def answer(self) -> dict[str, Any]:
        line = self._child.stdout.readline()
        if not line:
            self._log.seek(0)
            text = self._log.read()[-4000:].decode(errors="replace")
            raise RuntimeError(f"{self.peer.title} failed:\n{text}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, command: str) -> None:
        self._child.stdin.write(f"{command}\n")
        self._child.stdin.flush()


def all_peers() -> list[Peer]:
    """Return every peer, ours first."""
    names = {each.name for each in iter_modules(sides.__path__)} - {OURS}
    return [Peer(name) for name in (OURS, *sorted(names))]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
