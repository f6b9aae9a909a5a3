"""Read byte ranges of a beton, in compiled code that does not hold the GIL.

Bytes in the page cache are copied. Other bytes are read by direct I/O: the disk transfers the
sectors of a request and no more, straight into the caller's memory. Where the file system has no
direct I/O, or the caller wants the page cache to keep the bytes, the system reads whole pages.
"""

import mmap
import os
import threading
import weakref
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from ...errors import BetonError
from ...kernels.compiled import compiled, read_file
from ...stored import identity_of
from .extents import RetainedExtents
from .plan import whole_sectors
from .reading_threads import (
    OFFSET,
    READING_THREADS,
    RETURNED,
    STATE_COLUMNS,
    STOPS,
    ReadingThreads,
)

_SMALLEST_TASK = 1 << 20  # bytes: smaller tasks cost more than they share
# A request takes as long as reading this many bytes, in addition to its own.
_REQUEST_BYTES = 64 << 10
# Sizes of sectors, of which direct I/O accepts one or more. Most disks have the first.
SECTORS = (512, 4096)

# Of `bytes_read`. One lock for all readers is simple to renew in a forked process.
_counting = threading.Lock()


def _renew_lock() -> None:
    global _counting
    _counting = threading.Lock()  # a thread that the process does not have may hold the old one


os.register_at_fork(after_in_child=_renew_lock)

# Called by name: numba cannot cache code on disk that calls a function of ctypes.
_mincore: Any = types.ExternalFunction(
    "mincore", types.int32(types.uintp, types.uintp, types.uintp)
)


@compiled()
def _read_requests(source: Any, direct: Any, requests: Any, memory: Any, state: Any) -> Any:
    """Read until a request fails or returns too few bytes; return the number of whole requests.

    `source` is `FileReader.source`, `direct` the descriptor for bytes that are not in the page
    cache, and `state` the state of the thread.
    """
    file, sector, mapped, mapped_bytes, page = source
    is_cached = np.empty(1, dtype=np.uint8)
    for number in range(len(requests)):
        if state[STOPS] != 0:
            return number
        offset, size, place = requests[number]
        state[OFFSET] = offset
        used, num_bytes = file, size
        if direct != file:
            # The first and last page may be cached because of other samples: ask for the middle.
            middle = (offset + size // 2) // page * page
            is_cached[0] = 0
            if middle < mapped_bytes:
                _mincore(mapped + middle, page, is_cached.ctypes.data)
            if is_cached[0] & 1 == 0:
                used, num_bytes = direct, -(-size // sector) * sector
        found = read_file(used, memory[place:].ctypes.data, num_bytes, offset)
        state[OFFSET] = -1
        state[RETURNED] += 1
        if found < size:
            return number
    return len(requests)


class FileReader:
    """Reads byte ranges of a beton. It stays open: if it is replaced, the old file is read.

    Args:
        path: the beton.
        identity: `identity_of` the file that is expected there. Empty expects any file.

    Raises:
        BetonError: another file, or another version of it, is there.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str, identity: tuple[int, ...] = ()) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # may be a FIFO now
        weakref.finalize(self, os.close, self.file)
        if identity not in ((), identity_of(self.file)):
            raise BetonError(
                f"{path!r} was changed or replaced after it was opened. Open it again."
            )
        with suppress(OSError):  # only a hint, which not every file system takes
            os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        self.direct, self.sector = _open_direct(self.file)
        if self.direct != self.file:
            weakref.finalize(self, os.close, self.direct)
        self._map = _map(self.file)
        self.bytes_read = 0
        # Compiles it, if necessary: in a reading thread that would look like a disk that stalls.
        nothing, state = np.empty(0, dtype=np.uint8), np.zeros(STATE_COLUMNS, dtype=np.int64)
        _read_requests(self.source, self.file, np.empty((0, 3), dtype=np.int64), nothing, state)

    @property
    def source(self) -> NDArray[np.int64]:
        """Descriptor, sector, address and size of the map, size of a page, for compiled code."""
        address = self._map.ctypes.data if len(self._map) else 0
        values = (self.file, self.sector, address, len(self._map), mmap.PAGESIZE)
        return np.array(values, dtype=np.int64)

    def read(
        self,
        requests: NDArray[np.int64],
        memory: NDArray[np.uint8],
        extents: RetainedExtents,
        through_cache: bool = False,
        state: NDArray[np.int64] | None = None,
    ) -> None:
        """Read `size` bytes at `offset` into `memory[place:]`, for each request `(R, 3)`.

        Bytes up to the end of the last sector may follow those that were asked for.

        Raises BetonError if the file ends early or cannot be read. `extents` tell the sample.

        Args:
            requests: offset, size and place of each request, as in `EpochPlan`.
            memory: whole sectors, aligned to a page.
            extents: byte ranges, to name the sample in an error.
            through_cache: read whole pages, which the page cache keeps.
            state: state of the thread in `ReadingThreads`, which may stop the reads.
        """
        state = np.zeros(STATE_COLUMNS, dtype=np.int64) if state is None else state
        ends = requests[:, 2] + whole_sectors(requests[:, 1], self.sector) * self.sector
        if ends.max(initial=0) > len(memory) or requests.min(initial=0) < 0:
            raise ValueError("`requests` must lie within `memory`.")
        direct, done = self.file if through_cache else self.direct, 0
        while True:
            done += _read_requests(self.source, direct, requests[done:], memory, state)
            if done == len(requests) or state[STOPS]:
                break
            self._read_slowly(requests[done], memory, extents, state)
            done += 1
        requests = requests[:done]
        with _counting:
            self.bytes_read += int(whole_sectors(requests[:, 1], self.sector).sum()) * self.sector

    def submit(
        self, threads: ReadingThreads, requests: NDArray[np.int64], *arguments: Any
    ) -> list[Future[None]]:
        """Start to read requests as `read` does, in parts of similar duration, one per task."""
        ends = np.cumsum(requests[:, 1] + _REQUEST_BYTES)
        total = int(ends[-1]) if len(ends) else 0
        share = max(_SMALLEST_TASK, -(-total // (2 * READING_THREADS)))
        cuts = np.searchsorted(ends, np.arange(share, total, share))
        parts = [part for part in np.split(requests, cuts) if len(part)]
        return [threads.submit(self.read, part, *arguments) for part in parts]

    def _read_slowly(
        self,
        request: NDArray[np.int64],
        memory: NDArray[np.uint8],
        extents: RetainedExtents,
        state: NDArray[np.int64],
    ) -> None:
        """Read a request page by page, or raise BetonError for the page that fails."""
        offset, size, place = request.tolist()
        end = place + size
        while place < end and not state[STOPS]:
            state[OFFSET] = offset
            try:
                part = memory[place : min(place + mmap.PAGESIZE, end)]
                found = os.preadv(self.file, [part.data], offset)
            except OSError as error:
                raise self._failure(offset, error.strerror or "an error", extents) from error
            finally:
                state[OFFSET] = -1
                state[RETURNED] += 1
            if not found:
                reason = f"the file is {end - place} bytes too short"
                raise self._failure(offset, reason, extents)
            place, offset = place + found, offset + found

    def stall(self, offset: int, extents: RetainedExtents, timeout: float | None) -> TimeoutError:
        """Return the error for a read at `offset` that does not end."""
        return TimeoutError(
            f"cannot read sample {extents.sample_at(offset)} of {self.path!r} at byte {offset}: no "
            f"data arrived for {timeout:g} seconds. Check the disk or the network, or pass a "
            "larger `timeout`."
        )

    def _failure(self, offset: int, reason: str, extents: RetainedExtents) -> BetonError:
        return BetonError(
            f"cannot read sample {extents.sample_at(offset)} of {self.path!r} at byte {offset}: "
            f"{reason}. Check the disk, or copy the file again."
        )


def _open_direct(file: int) -> tuple[int, int]:
    """Open a file for direct I/O; return the descriptor and the sector that it accepts.

    Without direct I/O, return `file` itself.
    """
    direct = file
    with suppress(OSError):  # the file system has no direct I/O
        # By this name, it is the same file, even if another one has taken its path.
        direct = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        memory = mmap.mmap(-1, max(SECTORS))
        for sector in SECTORS:
            with suppress(OSError):  # a sector of another size
                os.preadv(direct, [memoryview(memory)[:sector]], sector)
                return direct, sector
        os.close(direct)
    return file, SECTORS[0]


def _map(file: int) -> NDArray[np.uint8]:
    """Map a file, only to ask which of its pages are in the page cache."""
    nothing = np.empty(0, dtype=np.uint8)
    # Of other files, Linux says that every page is cached.
    name, user = f"/proc/self/fd/{file}", os.geteuid()
    if user not in (0, os.fstat(file).st_uid) and not os.access(name, os.W_OK, effective_ids=True):
        return nothing
    try:
        return np.frombuffer(mmap.mmap(file, 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except (OSError, ValueError):  # a file that cannot be mapped, or is empty
        return nothing
