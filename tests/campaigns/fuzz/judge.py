"""Judge one case: what was raised, what was executed, opened or left behind, how much memory."""

import ctypes
import gc
import linecache
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.campaigns.fuzz.target import FaultError, Target
from tests.campaigns.results import ROOT
from tests.support.files import numbered_jpeg

OURS = tuple(str(ROOT / folder) + os.sep for folder in ("dp4tl_ffcv", "writers", "train"))
_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect")
_SECRET = 999  # number of the image that no dataset has
_ACCESS, _OPEN = 0x1, 0x20  # inotify's IN_ACCESS and IN_OPEN


class Sentinel:
    """Records what a case executes, and whether it opens anything in the folder `forbidden`.

    Programs and connections are heard by an audit hook. The kernel reports what is opened, whatever
    the path, link or library.
    """

    def __init__(self, forbidden: Path) -> None:
        self.secret = forbidden / "secret.jpg"
        """A valid image that nobody names but hostile data."""
        self.seen: list[str] = []
        forbidden.mkdir(parents=True, exist_ok=True)
        self.secret.write_bytes(numbered_jpeg(_SECRET))
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK)
        if libc.inotify_add_watch(self._events, os.fsencode(forbidden), _ACCESS | _OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify is not available", str(forbidden))
        sys.addaudithook(self._hear)

    def reset(self) -> None:
        """Forget what was seen."""
        self._read_events()
        self.seen.clear()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _RUNS:
            self.seen.append(f"{event}{arguments!r:.200}")

    def check(self) -> None:
        """Raise `FaultError` for what was seen since the last check."""
        if self._read_events():
            self.seen.append(f"opened {self.secret} or its folder")
        if self.seen:
            seen, self.seen = self.seen, []
            raise FaultError("executed or read outside", "; ".join(seen))

    def _read_events(self) -> bytes:
        try:
            return os.read(self._events, 1 << 16)
        except BlockingIOError:
            return b""


class Memory:
    """The growth of this process's resident memory since `reset`."""

    def __init__(self) -> None:
        self._refs = os.open("/proc/self/clear_refs", os.O_WRONLY)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._start = 0

    def reset(self) -> None:
        """Start again from the present resident memory."""
        os.pwrite(self._refs, b"5", 0)  # the peak becomes the present size
        self._start = self._kilobytes(b"VmRSS:")

    def growth(self) -> int:
        """Return the peak of resident memory since `reset`, minus the memory then, in bytes."""
        return 1024 * max(0, self._kilobytes(b"VmHWM:") - self._start)

    def _kilobytes(self, name: bytes) -> int:
        text = os.pread(self._status, 4096, 0)
        return int(text[text.index(name) + len(name) :].split(None, 1)[0])


def outcome_of(error: Exception, target: Target) -> str:
    """Return the name of a documented exception, or raise `FaultError`.

    Documented are the exceptions that a target allows, OSErrors that name a file, and the classes
    of this project; a plain ValueError only where a `raise` of this project raised it.
    """
    name = type(error).__name__
    if isinstance(error, FaultError):
        raise error
    if isinstance(error, target.allowed) or type(error).__module__.startswith("dp4tl_ffcv"):
        return name
    if isinstance(error, OSError) and error.filename is not None:
        return name
    if isinstance(error, target.raised) and _was_raised_by_us(error.__traceback__):
        return name
    raise FaultError(f"undocumented {name}", f"{name}: {str(error)[:300]}") from error


def _was_raised_by_us(trace: TracebackType | None) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    path = trace.tb_frame.f_code.co_filename
    return path.startswith(OURS) and linecache.getline(path, trace.tb_lineno).lstrip().startswith(
        "raise"
    )


def check_litter(folder: Path, expected: set[str], temporary: Path) -> None:
    """Raise `FaultError` for files that a case left in its folder or the temporary folder."""
    for attempt in range(2):
        files = (path for path in folder.rglob("*") if not path.is_dir())
        left = [path for path in files if path.relative_to(folder).as_posix() not in expected]
        left += temporary.iterdir()
        if not left:
            return
        if attempt:
            raise FaultError("left behind", ", ".join(sorted(map(str, left))))
        gc.collect()  # temporary files of objects that wait to be collected
