"""Read byte ranges of a beton, in compiled code that does not hold the GIL."""

import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from ...errors import BetonError
from ...kernels.compiled import compiled
from .extents import RetainedExtents
from .plan import LARGEST_REQUEST

# SSDs and network disks need several requests at the same time.
READING_THREADS = 8

# Called by name: numba cannot cache code on disk that calls a function of ctypes.
_pread = types.ExternalFunction(
    "pread", types.intp(types.int32, types.uintp, types.uintp, types.int64)
)


@compiled()
def _read_requests(file: Any, requests: Any, memory: Any) -> Any:
    """Read until a request fails or returns too few bytes; return the number of whole requests."""
    for number in range(len(requests)):
        offset, size, place = requests[number]
        if _pread(file, memory[place:].ctypes.data, size, offset) != size:
            return number
    return len(requests)


class FileReader:
    """Reads byte ranges of a beton. It stays open: if it is replaced, the old file is read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.bytes_read = 0
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self.file)

    def read(
        self, requests: NDArray[np.int64], memory: NDArray[np.uint8], extents: RetainedExtents
    ) -> None:
        """Read `size` bytes at `offset` into `memory[place:]`, for each request `(R, 3)`.

        Raises BetonError if the file ends early or cannot be read. `extents` tell the sample.
        """
        done = 0
        while (done := done + _read_requests(self.file, requests[done:], memory)) < len(requests):
            self._read_slowly(requests[done], memory, extents)
            done += 1
        with self._lock:
            self.bytes_read += int(requests[:, 1].sum())

    def submit(
        self,
        threads: ThreadPoolExecutor,
        requests: NDArray[np.int64],
        memory: NDArray[np.uint8],
        extents: RetainedExtents,
    ) -> list[Future[None]]:
        """Start to read requests as `read` does, in parts of similar size, one per task."""
        ends = np.cumsum(requests[:, 1])
        total = int(ends[-1]) if len(ends) else 0
        share = max(LARGEST_REQUEST // 4, -(-total // (2 * READING_THREADS)))
        cuts = np.searchsorted(ends, np.arange(share, total, share))
        parts = [part for part in np.split(requests, cuts) if len(part)]
        return [threads.submit(self.read, part, memory, extents) for part in parts]

    @property
    def identity(self) -> str:
        """A string that differs between files and between versions of a file."""
        found = os.fstat(self.file)
        return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    def check_size(self, extents: RetainedExtents) -> None:
        """Raise BetonError if the file ends before the last byte range."""
        size = os.fstat(self.file).st_size
        end = int(extents.ptrs[-1]) + int(extents.sizes[-1]) if len(extents.ptrs) else 0
        if size < end:
            raise self._failure(size, _too_short(end - size), extents)

    def _read_slowly(
        self, request: NDArray[np.int64], memory: NDArray[np.uint8], extents: RetainedExtents
    ) -> None:
        """Read a request in as many parts as necessary, or raise BetonError."""
        offset, size, place = request.tolist()
        end = place + size
        while place < end:
            try:
                found = os.preadv(self.file, [memory[place:end].data], offset)
            except OSError as error:
                raise self._failure(offset, error.strerror or "an error", extents) from error
            if not found:
                raise self._failure(offset, _too_short(end - place), extents)
            place, offset = place + found, offset + found

    def _failure(self, offset: int, reason: str, extents: RetainedExtents) -> BetonError:
        return BetonError(
            f"cannot read sample {extents.sample_at(offset)} of {self.path!r} at byte {offset}: "
            f"{reason}. Check the disk, or copy the file again."
        )


def _too_short(num_bytes: int) -> str:
    return f"the file is {num_bytes} bytes too short"
