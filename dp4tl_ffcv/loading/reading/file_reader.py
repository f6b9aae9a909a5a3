"""Read byte ranges of one file into memory, in compiled code without the GIL, and check each."""

import os
import threading
import weakref
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from ...errors import BetonError
from ...kernels.compiled import compiled
from .extents import RetainedExtents

# Of the C library, by name: unlike ctypes' functions it can be compiled into code kept on disk.
_pread = types.ExternalFunction(
    "pread", types.intp(types.int32, types.uintp, types.uintp, types.int64)
)


@compiled()
def _read_requests(file: Any, requests: Any, memory: Any) -> Any:
    """Return the number of requests that were met; the one behind them was not, or not wholly."""
    for number in range(len(requests)):
        offset, size, place = requests[number]
        if _pread(file, memory[place:].ctypes.data, size, offset) != size:
            return number
    return len(requests)


class FileReader:
    """An open beton that is read in requests.

    The file stays open until this is freed: a beton that is replaced meanwhile is read as it was.

    Args:
        path: the beton.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.bytes_read = 0
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self.file)

    def read(
        self, requests: NDArray[np.int64], memory: NDArray[np.uint8], extents: RetainedExtents
    ) -> None:
        """Meet each request `(offset, size, place)`: `memory[place:place + size]` from `offset`.

        `extents` say which sample lies where, for errors.

        Raises:
            BetonError: the file ends early or cannot be read there.
        """
        done = 0
        while (done := done + _read_requests(self.file, requests[done:], memory)) < len(requests):
            offset, size, place = requests[done].tolist()
            self._read_slowly(offset, size, place, memory, extents)
            done += 1
        with self._lock:
            self.bytes_read += int(requests[:, 1].sum())

    @property
    def identity(self) -> str:
        """What differs between two files, and between two states of one that was written anew."""
        found = os.fstat(self.file)
        return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    def check_size(self, extents: RetainedExtents) -> None:
        """Raise BetonError if the file ends before `extents` do.

        To touch a memory map behind the end of its file kills the process.
        """
        size, end = os.fstat(self.file).st_size, extents.end
        if size < end:
            found = f"the end of the file {end - size} bytes too early"
            raise self._failure(size, found, extents)

    def _read_slowly(
        self,
        offset: int,
        size: int,
        place: int,
        memory: NDArray[np.uint8],
        extents: RetainedExtents,
    ) -> None:
        """Meet a request that was interrupted, or say what is wrong with it."""
        end = place + size
        while place < end:
            try:
                found = os.preadv(self.file, [memory[place:end].data], offset)
            except OSError as error:
                found_instead = error.strerror or "an error"
                raise self._failure(offset, found_instead, extents) from error
            if not found:
                found_instead = f"the end of the file {end - place} bytes too early"
                raise self._failure(offset, found_instead, extents)
            place, offset = place + found, offset + found

    def _failure(self, offset: int, found: str, extents: RetainedExtents) -> BetonError:
        return BetonError(
            f"`path` must stay readable and whole; got {found} at byte {offset}, sample "
            f"{extents.sample_at(offset)}, of {self.path!r}. Check the disk, or copy it again."
        )
