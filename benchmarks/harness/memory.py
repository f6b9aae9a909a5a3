"""Bytes read and memory used, by a process or by a whole tree of processes (Linux)."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

PERIOD = 0.05  # seconds between two samples
# Memory that the kernel cannot drop. Mapped files, such as libraries, would count differently
# whenever an unrelated process starts or ends.
COUNTED = ("Pss_Anon:", "Pss_Shmem:")

_Result = TypeVar("_Result")


def read_so_far() -> int:
    """Return the bytes that this process has read by system calls."""
    return _proc_number("/proc/self/io", "rchar")


def tree_read_bytes(session: int) -> int:
    """Return the bytes that a session's processes have read from disks, ended ones included."""
    return sum(_proc_number(folder / "io", "read_bytes") for folder in _session_folders(session))


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # unwritten pages would stay in the cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_growth(call: Callable[[], _Result]) -> tuple[_Result, int]:
    """Return the result of `call` and the largest growth of resident memory during it, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _proc_number("/proc/self/status", "VmRSS")
    result = call()
    return result, 1024 * max(0, _proc_number("/proc/self/status", "VmHWM") - before)


def tree_bytes(session: int) -> int:
    """Return the anonymous and shared memory of a session's processes, in bytes.

    A page that several processes share, as after a fork, counts once.
    """
    total = 0
    for folder in _session_folders(session):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith(COUNTED))
    return total


def _session_folders(session: int) -> Iterator[Path]:
    """Yield the folders in /proc of a session's processes."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            # The command name in brackets may hold anything. State, parent, group, session follow.
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[3]) == session:
                yield stat.parent


class TreePeak:
    """Context that samples `tree_bytes` of a session in a background thread.

    The thread runs in the measuring process, so that the measured processes do no extra work. An
    error in it is raised at the end of the context.
    """

    growth: int
    """Largest sample minus the sample at the start, in bytes, at the end of the context."""

    def __init__(self, session: int) -> None:
        self._session, self._done = session, threading.Event()

    def __enter__(self) -> "TreePeak":
        self.start = tree_bytes(self._session)
        self._pool = ThreadPoolExecutor(1)
        self._peak = self._pool.submit(self._sample)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        self._pool.shutdown()
        if not kind:
            self.growth = self._peak.result() - self.start

    def _sample(self) -> int:
        peak = self.start
        while not self._done.wait(PERIOD):
            peak = max(peak, tree_bytes(self._session))
        return peak


def _proc_number(path: str | Path, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}: Linux is needed")
