"""Plan the reads of an epoch: which bytes, in which requests, to which place in memory.

A window is a number of consecutive batches that are read together. The byte ranges of a window are
sorted by their place in the file, and ranges with a small gap between them are read in one request.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .extents import RetainedExtents

# Largest gap in bytes that is read with its neighbours. At 2 GB/s, reading it takes 8 µs, about as
# long as another request.
MERGED_GAP = 16 << 10
# Larger requests are cut, so that several threads share them.
LARGEST_REQUEST = 4 << 20
# Runs of merged byte ranges start at multiples of this in memory.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The order of an epoch and the reads of its W windows."""

    order: NDArray[np.int64]  # sample ids (M,)
    window_size: int  # samples per window; the last may have fewer
    rows: NDArray[np.int64]  # rows of the retained byte ranges, window after window
    places: NDArray[np.int64]  # byte offset of each row in the window's memory
    row_starts: NDArray[np.int64]  # (W + 1,): window w has rows[row_starts[w]:row_starts[w + 1]]
    requests: NDArray[np.int64]  # (N, 3): offset in the file, bytes, offset in the window's memory
    request_starts: NDArray[np.int64]  # (W + 1,), as row_starts
    window_bytes: NDArray[np.int64]  # bytes of memory for each window (W,)

    @property
    def num_windows(self) -> int:
        """Number of windows W."""
        return len(self.window_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes that the epoch reads from the file."""
        return int(self.requests[:, 1].sum())

    def pool_bytes(self, windows: int) -> int:
        """Return the bytes of memory for this number of windows."""
        return min(windows, self.num_windows) * int(self.window_bytes.max(initial=0))


def plan_epoch(extents: RetainedExtents, order: NDArray[np.int64], window_size: int) -> EpochPlan:
    """Plan the reads of an epoch over `order`, `window_size` samples at a time."""
    rows, at = extents.rows_of(order)
    num_windows = -(-len(order) // window_size)
    # One sort orders the windows, and the rows of each window as in the file.
    num_rows = max(1, len(extents.ptrs))
    keys = np.sort(at // window_size * num_rows + rows)
    keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
    windows, rows = np.divmod(keys, num_rows)
    row_starts = np.searchsorted(windows, np.arange(num_windows + 1))

    begins = extents.ptrs[rows].astype(np.int64)
    ends = begins + extents.sizes[rows]
    is_first = np.ones(len(rows), dtype=np.bool_)
    is_first[1:] = (windows[1:] != windows[:-1]) | (begins[1:] - ends[:-1] > MERGED_GAP)
    firsts = np.flatnonzero(is_first)
    run_begins = begins[firsts]
    run_sizes = (np.maximum.reduceat(ends, firsts) if len(firsts) else ends) - run_begins
    run_windows = windows[firsts]
    run_places, window_bytes = _place(run_sizes, run_windows, num_windows)
    runs = np.cumsum(is_first) - 1
    places = run_places[runs] + begins - run_begins[runs]
    requests, request_windows = _cut(run_begins, run_sizes, run_places, run_windows)
    request_starts = np.searchsorted(request_windows, np.arange(num_windows + 1))
    return EpochPlan(
        order, window_size, rows, places, row_starts, requests, request_starts, window_bytes
    )


def _place(
    sizes: NDArray[np.int64], windows: NDArray[np.int64], num_windows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place the runs of each window one after the other; return places and bytes per window."""
    padded = (sizes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    ends = np.concatenate(([0], np.cumsum(padded)))
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
