"""Compile functions once, and keep them on disk until a source that they may come from changes.

Numba looks at the file of a function alone: one that calls a kernel of another file would go on
with the old kernel after that has changed.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SOURCES = ("beton", "jpeg", "kernels", "loading")  # what compiled functions are made of


def compiled(**options: Any) -> Callable[[_Function], _Function]:
    """Return numba's `njit` with these options, without the GIL, whose code is kept on disk."""

    def decorate(function: _Function) -> _Function:
        dispatcher: Any = njit(cache=True, nogil=True, **options)(function)
        # Numba has no interface for it. Where this is not found, its own rule holds.
        kept: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if hasattr(kept, "_source_stamp"):
            kept._source_stamp = _stamp()
        return cast("_Function", dispatcher)

    return decorate


@cache
def _stamp() -> str:
    package, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (package / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
