"""Plan the reads of an epoch: which bytes, in which requests, to which place in memory.

A window is a number of consecutive batches that are read together. Storage is read in whole
sectors, so the memory of a window is a row of sectors: those that hold its byte ranges, in the
order of the file. Nothing between them is read. Sectors that follow each other in the file do so in
memory too, and are read in one request.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .extents import RetainedExtents

# Larger requests are cut, so that several threads share them, and so that requests on a slow disk
# end: at 1 MB/s, 16 of this size take 4 s. A multiple of all sector sizes.
LARGEST_REQUEST = 1 << 20


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The order of an epoch and the reads of its W windows."""

    order: NDArray[np.int64]  # sample ids (M,)
    window_size: int  # samples per window; the last may have fewer
    sector: int  # bytes per sector
    rows: NDArray[np.int64]  # rows of the byte ranges to read, window after window
    places: NDArray[np.int64]  # byte offset of each row in the window's memory
    row_starts: NDArray[np.int64]  # (W + 1,): window w has rows[row_starts[w]:row_starts[w + 1]]
    # (N, 3): offset in the file, bytes to the end of the last byte range, offset in the window's
    # memory. Both offsets are multiples of the sector.
    requests: NDArray[np.int64]
    request_starts: NDArray[np.int64]  # (W + 1,), as row_starts
    window_bytes: NDArray[np.int64]  # bytes of memory for each window (W,)

    @property
    def num_windows(self) -> int:
        """Number of windows W."""
        return len(self.window_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes that the epoch reads from the file, in whole sectors."""
        return int(whole_sectors(self.requests[:, 1], self.sector).sum()) * self.sector

    def pool_bytes(self, windows: int) -> int:
        """Return the bytes of memory for this number of windows."""
        return min(windows, self.num_windows) * int(self.window_bytes.max(initial=0))


def plan_epoch(
    extents: RetainedExtents,
    order: NDArray[np.int64],
    window_size: int,
    sector: int,
    *,
    is_wanted: NDArray[np.bool_] | None = None,
    places: NDArray[np.int64] | None = None,
) -> EpochPlan:
    """Plan the reads of an epoch over `order`, `window_size` samples at a time.

    Args:
        extents: byte ranges of the samples, R rows.
        order: sample ids `(M,)`.
        window_size: samples per window.
        sector: bytes per sector.
        is_wanted: whether to read each byte range `(R,)`. None reads all.
        places: places `(R,)` in a memory for all windows, made by `plan_epoch` for one window.
    """
    rows, at = extents.rows_of(order)
    if is_wanted is not None:
        rows, at = rows[is_wanted[rows]], at[is_wanted[rows]]
    num_windows = -(-len(order) // window_size)
    # One sort orders the windows, and the rows of each window as in the file.
    num_rows = max(1, len(extents.ptrs))
    keys = np.sort(at // window_size * num_rows + rows)
    keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
    windows, rows = np.divmod(keys, num_rows)
    row_starts = np.searchsorted(windows, np.arange(num_windows + 1))

    begins = extents.ptrs[rows].astype(np.int64)
    ends = begins + extents.sizes[rows]
    is_first = _begins_run(begins // sector, whole_sectors(ends, sector), windows)
    first_rows, runs = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    run_begins = begins[first_rows] // sector * sector
    run_sizes = (np.maximum.reduceat(ends, first_rows) if len(rows) else ends) - run_begins
    run_windows = windows[first_rows]
    run_places, window_bytes = _place(run_sizes, run_windows, num_windows, sector)
    if places is not None:
        run_places = places[rows[first_rows]] + run_begins - begins[first_rows]
    row_places = run_places[runs] + begins - run_begins[runs]
    requests, request_windows = _cut(run_begins, run_sizes, run_places, run_windows)
    request_starts = np.searchsorted(request_windows, np.arange(num_windows + 1))
    return EpochPlan(
        order, window_size, sector, rows, row_places, row_starts, requests, request_starts,
        window_bytes,
    )  # fmt: skip


def whole_sectors(num_bytes: NDArray[np.int64], sector: int) -> NDArray[np.int64]:
    """Return the number of sectors that hold this many bytes."""
    return -(-num_bytes // sector)


def _begins_run(
    firsts: NDArray[np.int64], ends: NDArray[np.int64], windows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether each row begins a run, that is, sectors of one window without a gap.

    Row i has the sectors `firsts[i]` to `ends[i] - 1`.
    """
    # Moved apart, the sectors of all windows ascend.
    move = windows * (int(ends.max(initial=0)) + 2)
    reached = np.maximum.accumulate(ends + move)
    begins_run = np.ones(len(firsts), dtype=np.bool_)
    begins_run[1:] = firsts[1:] + move[1:] > reached[:-1]
    return begins_run


def _place(
    sizes: NDArray[np.int64], windows: NDArray[np.int64], num_windows: int, sector: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place the runs of each window one after the other; return places and bytes per window."""
    ends = np.concatenate(([0], np.cumsum(whole_sectors(sizes, sector) * sector)))
    starts = ends[np.searchsorted(windows, np.arange(num_windows + 1))]
    return ends[:-1] - starts[windows], np.diff(starts)


def _cut(
    begins: NDArray[np.int64],
    sizes: NDArray[np.int64],
    places: NDArray[np.int64],
    windows: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut runs into requests of bounded size; return the requests and their windows."""
    counts = -(-sizes // LARGEST_REQUEST)
    skipped = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    skipped *= LARGEST_REQUEST
    left = np.repeat(sizes, counts) - skipped
    requests = np.stack(
        (
            np.repeat(begins, counts) + skipped,
            np.minimum(left, LARGEST_REQUEST),
            np.repeat(places, counts) + skipped,
        ),
        axis=1,
    )
    return requests, np.repeat(windows, counts)
