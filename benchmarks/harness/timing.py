"""Time of code by the clock and in seconds of the processor, child processes included (Linux)."""

import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_CPU_CLOCK = 2  # the kernel's name for the scheduler's nanoseconds of a process and its threads
_TICKS = os.sysconf("SC_CLK_TCK")


class Timing(NamedTuple):
    """Seconds, or a rate per second."""

    wall: float
    """By the clock."""
    cpu: float
    """By user and system time of the process, its threads and its descendants."""

    def rate(self, amount: float) -> "Timing":
        """Return `amount` per second, where this holds seconds."""
        return Timing(amount / self.wall, amount / self.cpu)

    def times(self, factor: float) -> "Timing":
        return Timing(factor * self.wall, factor * self.cpu)


class Stopwatch:
    """Context that measures its body. Descendants may run on, end, or be waited for meanwhile."""

    timing: Timing
    """Seconds of the body, at the end of the context."""

    def __enter__(self) -> "Stopwatch":
        self._others = descendants_seconds(os.getpid())
        self._own, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall, own = time.perf_counter() - self._start, time.process_time() - self._own
        others = descendants_seconds(os.getpid()) - self._others
        # Ended children are counted in the kernel's ticks, which may round below what they were.
        self.timing = Timing(wall, own + max(0.0, others))


def tree_seconds(process: int) -> float:
    """Return the processor seconds so far of a process and its descendants."""
    return _seconds(process) + descendants_seconds(process)


def descendants_seconds(process: int) -> float:
    """Return the processor seconds so far of a process's descendants, ended ones included.

    An ended descendant whose parent ended too, or that nobody can wait for, is not counted unless
    the process adopts orphans (`PR_SET_CHILD_SUBREAPER`), as those of `Worker` do.
    """
    ended, children = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            # State and parent follow the command name in brackets, which may hold anything.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            number = int(stat.parent.name)
            children.setdefault(int(fields[1]), []).append(number)
            # Fields 14 and 15 of proc(5) are the process's own ticks, 16 and 17 those of children
            # that it waited for.
            ended[number] = sum(map(int, fields[13:15])) / _TICKS
    if process == os.getpid():  # whose kernel counters are finer
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended[process] = usage.ru_utime + usage.ru_stime
    total, rest = ended.get(process, 0.0), list(children.get(process, ()))
    while rest:
        number = rest.pop()
        total += _seconds(number) + ended[number]
        rest += children.get(number, ())
    return total


def _seconds(process: int) -> float:
    """Return the processor seconds of a process's threads, in nanoseconds' resolution."""
    try:
        return time.clock_gettime(~process << 3 | _CPU_CLOCK)
    except OSError:  # it has ended, and nobody has waited for it: its ticks remain
        with suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{process}/stat").read_text(errors="replace")
            return sum(map(int, text.rpartition(")")[2].split()[11:13])) / _TICKS
        return 0.0
