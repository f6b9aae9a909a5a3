"""How much memory this process may use."""

import os
from collections.abc import Iterator

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available_memory() -> int:
    """Return the available memory in bytes, at most the limit of the process's control group."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([installed, *_limits()])


def _limits() -> Iterator[int]:
    with open("/proc/meminfo") as lines:
        yield from (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    for path in _CGROUP_LIMITS:
        try:
            with open(path) as stream:
                limit = stream.read().strip()
        except OSError:
            continue
        if limit.isdigit():  # or "max"
            yield int(limit)
