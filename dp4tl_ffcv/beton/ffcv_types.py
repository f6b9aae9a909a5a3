"""Keep ffcv from editing the type objects that numba shares between all compiled code.

ffcv's memory managers describe read-only memory by taking numba's one object for `uint8[::1]` (and
others) and setting `mutable` on it. That changes its hash under every table it is a key of: code
that was compiled before can then fail with a KeyError when more is compiled, or print one when a
Loader is freed. With `keep_types_whole` the managers find types that are read-only from the start.
"""

from types import ModuleType
from typing import Any

import numba
from ffcv.memory_managers import os_cache
from ffcv.memory_managers.process_cache import manager as process_cache
from numba import types

__all__ = ["keep_types_whole"]

_EDITED = {os_cache: ("uint8",), process_cache: ("uint8", "uint32", "uint64")}


class _ReadOnlyArrays:
    """Stands for a number type: subscripts give read-only C-contiguous arrays of it."""

    def __init__(self, number: Any) -> None:
        self._number = number

    def __getitem__(self, subscript: Any) -> Any:
        array = self._number[subscript]
        return types.Array(array.dtype, array.ndim, array.layout, readonly=True)


class _Numba(ModuleType):
    """Stands for numba in a module that edits types."""

    def __init__(self, edited: tuple[str, ...]) -> None:
        super().__init__("numba")
        for name in edited:
            setattr(self, name, _ReadOnlyArrays(getattr(numba, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(numba, name)


def keep_types_whole() -> None:
    """Let ffcv's memory managers take read-only types instead of making shared ones so."""
    for module, edited in _EDITED.items():
        if module.nb is numba:
            module.nb = _Numba(edited)
