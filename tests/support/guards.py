"""Memory that shows whether compiled code writes outside of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

GUARD = 256  # bytes on either side
ALIGNMENT = 64


@contextmanager
def guarded(size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield `size` aligned bytes, and check afterwards that the bytes around them are unchanged."""
    whole = np.full(size + 2 * GUARD + ALIGNMENT, 0xA5, dtype=np.uint8)
    start = GUARD + -(whole.ctypes.data + GUARD) % ALIGNMENT
    yield whole[start : start + size]
    assert (whole[:start] == 0xA5).all()
    assert (whole[start + size :] == 0xA5).all()
