"""The memory that is left for caches."""

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
    container and its batch job.
    """
    lines = (_PROC / "meminfo").read_text().splitlines()
    machine = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    return max(0, min([machine, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield what is left in each control group that has a limit."""
    for line in (_PROC / "self" / "cgroup").read_text().splitlines():
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
    counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    cached = sum(int(counts[name]) for name in page_cache)
    return int((folder / limit).read_text()) - int((folder / usage).read_text()) + cached
