"""Run the cases of a target in worker processes, and attribute hangs and crashes to their case."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaigns.results import ROOT

PATIENCE = 10.0  # seconds without progress that make a hang
IDLE = 0.2  # seconds of processor time below which a silent process waits for ever
START_UP = 300.0  # seconds to import, to write the samples and to compile
SHARD = 500  # cases that a worker gets at a time
MOST_RESTARTS = 20  # hangs and crashes after which a target ends early
MODULE = "tests.campaigns.fuzz.worker"


@dataclass
class Tally:
    """The outcomes of all cases of a target."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Case, class, message and traceback of each fault."""
    peak_bytes: int = 0
    restarts: int = 0
    retried: int = 0
    """Cases that worked for longer than `PATIENCE` once, and not again."""

    def add(self, report: Sequence[Any]) -> None:
        """Count the report of a worker."""
        case, outcome, growth, *fault = report
        self.peak_bytes = max(self.peak_bytes, growth)
        if fault:
            self.add_fault(case, *fault)
        else:
            self.outcomes[outcome] += 1

    def add_fault(self, case: int, kind: str, message: str, trace: str = "") -> None:
        """Count a fault."""
        self.faults[kind] += 1
        self.reports.append({"case": case, "fault": kind, "message": message, "trace": trace})


class _EndedError(Exception):
    """The worker ended, or sent nothing for too long.

    `was_idle` tells a process that waits for ever from one that works, if slowly.
    """

    def __init__(self, message: str, *, hung: bool, was_idle: bool = False) -> None:
        super().__init__(message)
        self.hung, self.was_idle = hung, was_idle


class Worker:
    """A worker process and the pipe of its reports."""

    def __init__(self, folder: Path, module: str, patience: float) -> None:
        self.folder, self._module, self._patience = folder, module, patience
        self._process: Any = None

    def run(self, shard: dict[str, Any]) -> Iterator[list[Any]]:
        """Yield the reports of a shard. Raise `_EndedError` if the process does not finish it."""
        if self._process is None:
            self._start()
        self._process.stdin.write((json.dumps(shard) + "\n").encode())
        self._process.stdin.flush()
        try:
            self._next(START_UP)  # "ready"
        except _EndedError as error:
            raise RuntimeError(f"{shard['target']} has no intact samples: {error}") from error
        while (report := self._next(self._patience)) != ["done"]:
            yield report

    def end(self) -> None:
        """Stop the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            os.close(self._reports)
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        self.folder.mkdir(parents=True)
        self._reports, end = os.pipe()
        command = [sys.executable, "-m", self._module, str(end), str(self.folder)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(end,),
            stderr=(self.folder / "stderr").open("wb"), env={**os.environ, **_ENVIRONMENT},
        )  # fmt: skip
        os.close(end)
        self._buffer = b""

    def _next(self, patience: float) -> list[Any]:
        deadline, before = time.monotonic() + patience, self._work()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._reports], [], [], left)[0]:
                raise self._silent(patience, self._work() - before)
            data = os.read(self._reports, 1 << 16)
            if not data:
                raise self._ended()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return list(json.loads(line))

    def _work(self) -> float:
        """Return the processor time of the process in seconds."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _silent(self, patience: float, work: float) -> _EndedError:
        self._process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        message = f"no progress for {patience:g} s, and {work:.1f} s of processor time"
        return _EndedError(self._with_errors(message), hung=True, was_idle=work < IDLE)

    def _ended(self) -> _EndedError:
        status = self._process.wait()
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return _EndedError(self._with_errors(f"the process ended with {name}"), hung=False)

    def _with_errors(self, message: str) -> str:
        """End the process and return the message with what it printed."""
        printed = (self.folder / "stderr").read_text(errors="replace").splitlines(keepends=True)
        self.end()
        # faulthandler also lists all extension modules, which would leave no room for the stacks.
        errors = "".join(line for line in printed if not line.startswith("Extension modules:"))
        return f"{message}\n{errors[-3000:]}"


_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONHASHSEED": "0",
}


class Campaign:
    """Deals the shards of targets to worker processes, which run the module `worker`."""

    def __init__(
        self, folder: Path, seed: int, jobs: int, worker: str = MODULE, patience: float = PATIENCE
    ) -> None:
        self._seed, self._jobs = seed, jobs
        folders = [folder / f"worker{number}" for number in range(jobs)]
        self._workers = [Worker(each, worker, patience) for each in folders]

    def __enter__(self) -> "Campaign":
        """Return the campaign. Its processes start with their first shard."""
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, target: str, cases: range, deadline: float | None = None) -> Tally:
        """Run the cases of a target. Shards that have not begun at the deadline are left out."""
        tally, lock = Tally(), threading.Lock()
        size = max(1, min(SHARD, -(-len(cases) // self._jobs)))
        shards = iter([cases[at : at + size] for at in range(0, len(cases), size)])

        def work(worker: Worker) -> None:
            while deadline is None or time.monotonic() < deadline:
                if tally.restarts >= MOST_RESTARTS:
                    return
                with lock:
                    shard = next(shards, None)
                if shard is None:
                    return
                self._run_shard(worker, target, shard, tally, lock)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            for done in [threads.submit(work, worker) for worker in self._workers]:
                done.result()
        return tally

    def _run_shard(
        self, worker: Worker, target: str, cases: range, tally: Tally, lock: threading.Lock
    ) -> None:
        """Run all cases of a shard, with a fresh process after each hang or crash."""
        case, suspect = cases.start, -1
        while case < cases.stop:
            shard = {"target": target, "seed": self._seed, "first": case, "stop": cases.stop}
            try:
                for report in worker.run(shard):
                    with lock:
                        tally.add(report)
                        tally.retried += case == suspect
                    case += 1
            except _EndedError as error:
                if error.hung and not error.was_idle and suspect != case:
                    suspect = case  # a busy machine may have slowed it: try once more
                    continue
                with lock:
                    tally.add_fault(case, "hang" if error.hung else "crash", str(error))
                    tally.restarts += 1
                if tally.restarts >= MOST_RESTARTS:
                    return
                case += 1
