"""Where the bytes of a sample come from: a memory map that leaves numba's types alone.

ffcv's own `OSCacheManager` describes its state to numba by editing shared type objects
(`state_type` sets `mutable` on `uint8[::1]`). That changes their hash under every table that numba
keeps them in: a second Loader then fails with a KeyError at random, or prints one when it is freed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline.compiler import Compiler

__all__ = ["MappedFile"]


class MappedFile(OSCacheManager):
    """ffcv's memory map over tables that another manager has built already."""

    def __init__(self, built: OSCacheManager) -> None:
        # The parent's constructor would build its tables, Python objects per sample, once more.
        self.__dict__.update(built.__dict__)
        self.context.manager = self

    def compile_reader(self) -> Callable[..., Any]:
        """Return the compiled function from a byte offset to the bytes stored there."""

        def read(address: Any, state: Any) -> Any:
            size = state[2][np.searchsorted(state[1], address)]
            return state[0][address : address + size]

        return Compiler.compile(read)  # type: ignore[no-any-return]  # no signature: see above
