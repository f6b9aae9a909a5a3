"""Caches: where the bytes of the retained samples are kept during an epoch.

A module of this folder that defines a class `Cache` is a cache, called by the module's name.
`base` holds the interface.
"""

from collections.abc import Iterator
from importlib import import_module
from os import sysconf  # the name `os` stands for the cache
from pkgutil import iter_modules
from typing import Any

from ...validate import check_choice
from ..reading.extents import RetainedExtents
from ..reading.file_reader import FileReader
from .base import BaseCache

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CACHES = tuple(module.name for module in iter_modules(__path__) if module.name != "base")


def cache_name(cache: str | None, os_cache: bool | None) -> str:
    """Return the name of the cache that `cache` or ffcv's argument `os_cache` asks for."""
    if cache is None:
        return "auto" if os_cache is None else "os" if os_cache else "extents"
    return check_choice("cache", cache, (*CACHES, "auto"))


def choose_cache(extents: RetainedExtents) -> str:
    """Return the cache that "auto" stands for.

    If the bytes fit into half of the memory, the system's page cache keeps them, without copies
    and for all processes. Otherwise, only the coming batches are read.
    """
    return "os" if extents.num_bytes <= available_memory() // 2 else "extents"


def available_memory() -> int:
    """Return the available memory in bytes, at most the limit of the process's control group."""
    installed = sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE")
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


def open_cache(
    name: str, reader: FileReader, extents: RetainedExtents, **options: Any
) -> BaseCache:
    """Open the cache called `name`, one of `CACHES`, with the arguments of `BaseCache`."""
    cache: BaseCache = import_module(f".{name}", __name__).Cache(reader, extents, **options)
    return cache
