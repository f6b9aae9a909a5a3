"""Faults in reads and writes: a C library that is preloaded, and the plan that it follows.

The plan lies in a file that every process maps, so that it can change while processes run.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READ, WRITE, SYNC, RENAME = 1, 2, 4, 8
_KINDS = {"none": 0, "fail": 1, "short": 2, "empty": 3, "stall": 4, "die": 5, "count": 6}
_SOURCE = Path(__file__).with_name("shim.c")
_FOREVER = 1 << 30


_NUMBERS = (
    "kind", "ops", "error", "after", "most", "bytes", "seconds", "seen", "hits", "group"
)  # fmt: skip


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in _NUMBERS),
        ("start", ctypes.c_longlong),
        ("end", ctypes.c_longlong),
        ("path", ctypes.c_char * 512),
    )


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault in the system calls on a file."""

    name: str
    kind: str
    """fail, short (at most `bytes` at a time), empty (the end of a file), stall, die or count."""
    ops: int = READ
    error: int = errno.EIO
    after: int = 0
    """Calls that succeed before."""
    most: int = _FOREVER
    """Calls that are changed."""
    bytes: int = 100
    seconds: int = 60
    group: bool = True
    """Let the whole group of processes die."""


EIO = Fault(name="EIO", kind="fail")
EIO_ONCE = Fault(name="EIO once", kind="fail", most=1)
EINTR = Fault(name="EINTR", kind="fail", error=errno.EINTR, most=20)
SHORT_READS = Fault(name="short reads", kind="short")
EARLY_END = Fault(name="early end", kind="empty")
STALL = Fault(name="stall", kind="stall")


def build(folder: Path) -> Path:
    """Compile the library, and make an empty plan next to it."""
    library = folder / "shim.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, _SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    (folder / "plan").write_bytes(bytes(ctypes.sizeof(_Plan)))
    return library


class Shim:
    """The plan of the preloaded library of this process and of its children."""

    def __init__(self) -> None:
        with Path(os.environ["CHAOS_CONTROL"]).open("r+b") as stream:
            self._plan = _Plan.from_buffer(mmap.mmap(stream.fileno(), 0))

    @property
    def hits(self) -> int:
        """Calls that the last fault has changed."""
        return int(min(self._plan.hits, self._plan.most))

    @property
    def seen(self) -> int:
        """Calls that the last fault could have changed."""
        return int(self._plan.seen)

    def start(self, fault: Fault, path: str, start: int = 0, end: int = 1 << 62) -> None:
        """Let a fault meet calls on bytes [start, end), in all processes.

        `path` ends in a slash if it is a folder; else it is the end of the path of a file.
        """
        plan = self._plan
        plan.ops, plan.error, plan.after, plan.most = (
            fault.ops,
            fault.error,
            fault.after,
            fault.most,
        )
        plan.bytes, plan.seconds, plan.start, plan.end = fault.bytes, fault.seconds, start, end
        plan.seen = plan.hits = 0
        plan.group = fault.group
        plan.path = path.encode()
        plan.kind = _KINDS[fault.kind]

    def stop(self) -> None:
        """Let all calls pass again."""
        self._plan.kind = _KINDS["none"]

    @contextmanager
    def injected(self, fault: Fault, path: str) -> Iterator[None]:
        """Let a fault meet calls in the block."""
        self.start(fault, path)
        try:
            yield
        finally:
            self.stop()
