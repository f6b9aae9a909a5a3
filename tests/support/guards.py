"""Memory that shows whether compiled code reads or writes outside of it."""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

GUARD = 256  # bytes on either side
ALIGNMENT = 64

_NO_ACCESS = 0  # PROT_NONE
_protect = ctypes.CDLL(None).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@contextmanager
def guarded(size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield `size` aligned bytes, and check afterwards that the bytes around them are unchanged."""
    whole = np.full(size + 2 * GUARD + ALIGNMENT, 0xA5, dtype=np.uint8)
    start = GUARD + -(whole.ctypes.data + GUARD) % ALIGNMENT
    yield whole[start : start + size]
    assert (whole[:start] == 0xA5).all()
    assert (whole[start + size :] == 0xA5).all()


def fenced(data: NDArray[np.uint8], after: bool = True) -> NDArray[np.uint8]:
    """Return a copy of `data` next to a page whose access ends the process.

    The page follows the last byte, or precedes the first one if not `after`.
    """
    page = mmap.PAGESIZE
    room = -(-data.size // page) * page
    whole = np.frombuffer(mmap.mmap(-1, room + 2 * page), dtype=np.uint8)
    start = page + (room - data.size if after else 0)
    copy = whole[start : start + data.size]
    copy[:] = data
    for closed in (whole.ctypes.data, whole.ctypes.data + page + room):
        assert _protect(closed, page, _NO_ACCESS) == 0
    return copy
