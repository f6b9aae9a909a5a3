"""Scratch memory of the decoders, and their record of samples that could not be decoded."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...beton import BetonIndex
from ...errors import BetonError
from ...jpeg.crop import BAD_REQUEST, CORRUPT, NOT_A_JPEG, WRONG_SIZE, jpeg_scratch_bytes
from ...kernels.resize import resize_scratch_bytes
from ...kernels.scratch import ALIGNMENT, aligned
from .crop_kernels import BOX_BYTES, NO_BYTES, WRONG_LENGTH

_FAILURES = {
    NOT_A_JPEG: "is not a JPEG",
    WRONG_SIZE: "is a JPEG of another size than its metadata says",
    CORRUPT: "is a corrupt JPEG",
    BAD_REQUEST: "does not fit into the scratch memory",
    NO_BYTES: "has no bytes",
    WRONG_LENGTH: "has more or fewer bytes than its pixels take",
}


class Workspace:
    """Scratch memory of `num_bytes` for each decoding thread, and `index_bytes` for an index."""

    def __init__(self, num_threads: int, num_bytes: int, index_bytes: int = 0) -> None:
        width = aligned(num_bytes)
        memory = np.empty(num_threads * width + ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.scratch = memory[start : start + num_threads * width].reshape(num_threads, width)
        self.failures = np.full((num_threads, 2), -1, dtype=np.int64)
        self.copies = np.empty((num_threads, aligned(index_bytes)), dtype=np.uint8)

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """Arrays for compiled decoders."""
        return self.scratch, self.failures, self.copies

    def fail(self, sample: int, status: int) -> None:
        """Record that a sample cannot be decoded, for `check`."""
        self.failures[0] = sample, status

    def check(self, path: str) -> None:
        """Raise BetonError if a sample could not be decoded, and clear the record."""
        failed = self.failures[self.failures[:, 0] >= 0]
        if len(failed):
            self.failures[:] = -1
            sample, status = failed[0].tolist()
            raise BetonError(
                f"sample {sample} of {path!r} cannot be decoded: its image {_FAILURES[status]}. "
                "Leave it out of the selection, or write the beton again."
            )


def make_workspace(
    decoders: Iterable[tuple[str, Any]],
    index: BetonIndex,
    samples: NDArray[np.int64],
    num_threads: int,
    index_bytes: int,
) -> Workspace:
    """Return scratch memory for the largest image of `samples` and for an index of its JPEG.

    `decoders` are pairs of the name of a field and its decoder.
    """
    num_bytes, height, width = 0, 0, 0
    for field, decoder in decoders:
        if hasattr(decoder, "decoders"):
            images = index.column(field)[samples]
            height, width = int(images["height"].max()), int(images["width"].max())
            num_bytes = max(num_bytes, scratch_bytes(decoder.decoders, height, width))
    try:
        return Workspace(num_threads, num_bytes, index_bytes)
    except MemoryError as error:
        raise BetonError(
            f"images of {height} x {width} pixels in {str(index.path)!r} do not fit into memory. "
            "Leave the largest images out of the selection, or write the beton again."
        ) from error


def scratch_bytes(decoders: Sequence[Any], max_height: int, max_width: int) -> int:
    """Return the bytes that `decoders` need to crop one image of at most this size."""
    sizes = [decoder.output_size for decoder in decoders]
    resizing = max(resize_scratch_bytes(max_width, *size) for size in sizes)
    work = max(int(jpeg_scratch_bytes(max_height, max_width)), resizing)
    return int(aligned(len(decoders) * BOX_BYTES) + aligned(3 * max_height * max_width)) + work
