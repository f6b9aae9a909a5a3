"""What the decoders of one epoch work with, and where they say that a sample failed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BetonError
from ...jpeg.crop import BAD_REQUEST, CORRUPT, NOT_A_JPEG, WRONG_SIZE
from ...kernels.compiled import compiled

ALIGNMENT = 64
# What decoders report beside the failures of a JPEG.
NO_BYTES, WRONG_LENGTH = 101, 102
_FAILURES = {
    NOT_A_JPEG: "what is no JPEG",
    WRONG_SIZE: "a JPEG of another size",
    CORRUPT: "a damaged JPEG",
    BAD_REQUEST: "an image that does not fit into the memory set aside",
    NO_BYTES: "nothing",
    WRONG_LENGTH: "more or fewer bytes than its pixels take",
}


class Workspace:
    """Memory for each thread, not for each sample.

    Args:
        num_threads: that decode at the same time.
        num_bytes: of memory for each.
    """

    def __init__(self, num_threads: int, num_bytes: int) -> None:
        width = aligned(num_bytes)
        memory = np.empty(num_threads * width + ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.scratch = memory[start : start + num_threads * width].reshape(num_threads, width)
        self.failures = np.full((num_threads, 2), -1, dtype=np.int64)

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """What compiled decoders are given."""
        return self.scratch, self.failures

    def check(self, path: str) -> None:
        """Raise BetonError if a sample could not be decoded; forget it then."""
        failed = self.failures[self.failures[:, 0] >= 0]
        if len(failed):
            self.failures[:] = -1
            sample, status = failed[0].tolist()
            raise BetonError(
                f"sample {sample} of {path!r} must hold the image that its metadata describe; got "
                f"{_FAILURES[status]}. Leave it out of the selection, or write it again."
            )


@compiled()
def aligned(num_bytes: int) -> int:
    """Round up to whole cache lines."""
    return (num_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
