"""The size of the image that a JPEG states."""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled
from .calls import delete_decompressor, new_decompressor, read_header


@compiled()
def states_size(data: Any, height: Any, width: Any) -> Any:
    """Return whether contiguous uint8 begin with the header of a JPEG of this size."""
    found = np.zeros(4, dtype=np.int32)
    at = found.ctypes.data
    handle = new_decompressor()
    if handle == 0:
        return False
    status = read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12)
    delete_decompressor(handle)
    return bool(status == 0 and found[0] == width and found[1] == height)
