"""The memory that is left for caches."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Files of a control group: limit and usage. Lines of `memory.stat`: the page cache.
_CACHED = ("active_file", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", *(f"total_{x}" for x in _CACHED))
_VERSION_2 = ("memory.max", "memory.current", *_CACHED)


def available_memory() -> int:
    """Return the bytes of memory that this process can take, page cache included.

    The least of what is left on the machine and in the control groups of the process, such as its
    container and its batch job. What a sandbox hides is not counted.
    """
    return max(0, min([_left_on_machine(), *_left_in_groups()]))


def _left_on_machine() -> int:
    with suppress(OSError, ValueError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_in_groups() -> Iterator[int]:
    """Yield what is left in each control group that has a limit."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    for line in (each for each in lines if each.count(":") >= 2):
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files, top = (_VERSION_1, _GROUPS / "memory") if controllers else (_VERSION_2, _GROUPS)
        folder = top / name.lstrip("/")
        while True:
            # A container may not see the group's own folder: its limit is then at the top.
            with suppress(OSError, ValueError):  # no such folder, or no limit: "max"
                yield _left(folder, *files)
            if folder in (top, folder.parent):
                break
            folder = folder.parent


def _left(folder: Path, limit: str, usage: str, *page_cache: str) -> int:
    left = int((folder / limit).read_text()) - int((folder / usage).read_text())
    with suppress(OSError, ValueError):  # not every kernel counts the page cache
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        left += sum(int(counts.get(name, 0)) for name in page_cache)
    return left
