"""Caches: where the bytes of the retained samples are kept during an epoch.

A module of this folder that defines a class `Cache` is a cache, called by the module's name.
`base` holds the interface.
"""

import hashlib
import platform
from collections import Counter
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ...stored import identity_of
from ...validate import check_choice
from ...version import __version__
from ..reading.available_memory import available_memory
from ..reading.extents import RetainedExtents
from ..reading.file_reader import FileReader
from ..reading.shared_memory import shared_room
from .base import BaseCache

_calls = Counter[str]()  # of `agree_on_machine`, by the key
CACHES = tuple(module.name for module in iter_modules(__path__) if module.name != "base")


def cache_name(cache: str | None, os_cache: bool | None) -> str:
    """Return the name of the cache that `cache` or ffcv's argument `os_cache` asks for."""
    if cache is None:
        return "extents" if os_cache is not None and not os_cache else "auto"
    return check_choice("cache", cache, (*CACHES, "auto"))


def shared_name(reader: FileReader, extents: RetainedExtents, fingerprint: str) -> str:
    """Return a name for the memory of all processes that retain the same bytes of a beton.

    Processes that share memory must also agree on its layout.
    """
    state = (fingerprint, identity_of(reader.file), __version__, reader.sector)
    digest = hashlib.sha256(repr(state).encode())
    digest.update(extents.ptrs.data)
    return digest.hexdigest()[:32]


def choose_cache(name: str, extents: RetainedExtents, shared_as: str | None) -> str:
    """Return `name`, or the cache that "auto" stands for.

    "ram" if the bytes take at most a quarter of the available memory, else "extents". A process
    with a loader for training and one for evaluation chooses twice before either takes its memory,
    and half must be left for the model and for batches. Shared memory has a limit of its own, of
    which the same two loaders may take half each. The processes that share it agree on the cache.
    """
    if name != "auto":
        return name
    room = available_memory() // 4
    if shared_as is not None:
        room = min(room, shared_room() // 2)
    choice = "ram" if extents.num_bytes <= room else "extents"
    return choice if shared_as is None else agree_on_machine(choice, shared_as)


def agree_on_machine(choice: str, key: str) -> str:
    """Return the choice of the first process of this machine, for the nth call with this key.

    The room for memory changes while the processes choose, and between two calls. All processes
    call this in step. Without a process group, return `choice`.

    Raises RuntimeError if the other processes cannot be reached.
    """
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return choice
    _calls[key] += 1
    name = f"dp4tl_ffcv/{platform.node()}/{key}/{_calls[key]}"
    # A collective operation would need tensors on the device of the backend.
    store: Any = distributed.distributed_c10d._get_default_store()
    return str(store.compare_set(name, "", choice).decode())


def open_cache(
    name: str, reader: FileReader, extents: RetainedExtents, **options: Any
) -> BaseCache:
    """Open the cache called `name`, one of `CACHES`, with the arguments of `BaseCache`."""
    cache: BaseCache = import_module(f".{name}", __name__).Cache(reader, extents, **options)
    return cache
