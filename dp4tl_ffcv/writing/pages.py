"""Place encoded samples on the pages of an unfinished beton."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_all
from ..beton.format import ALLOCATION, LARGEST_PAGE, leaf, uint64_paths
from .encode import MARK, Batch
from .journal import Journal, WriteState

# The state is recorded this often: a killed process loses no more.
COMMIT_BYTES = 128 << 20
COMMIT_SECONDS = 5.0


class PageWriter:
    """Continues an unfinished beton at `state`, and records its progress in the journal.

    A sample never crosses a page, because ffcv's page cache reads single pages. With `grows`, the
    page size doubles when a sample needs it. Samples that were placed before do not cross the
    larger pages either.
    """

    def __init__(
        self, stream: IO[bytes], journal: Journal, state: WriteState, tables_at: int, grows: bool
    ) -> None:
        self.state = state
        self._file = stream.fileno()
        self._journal = journal
        self._tables_at = tables_at
        self._grows = grows
        self._saved, self._saved_at = state, time.monotonic()
        self._saving: Future[None] | None = None
        self._saver = ThreadPoolExecutor(1)
        self._table = os.open(journal.table, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Remove bytes that a killed run wrote after its last record: gaps must be zero.
        os.ftruncate(self._file, state.position)
        os.ftruncate(self._table, state.extents * ALLOCATION.itemsize)

    def place(self, batch: Batch, data: bytes | memoryview) -> None:
        """Write the samples of a batch, whose bytes are `data`."""
        state, rows = self.state, batch.rows
        owners = np.repeat(np.arange(len(rows)), batch.extents)
        rooms = np.maximum(1, batch.sizes)  # no two byte ranges may share a start in ffcv
        sizes = np.bincount(owners, weights=rooms, minlength=len(rows)).astype(np.int64)
        starts = self._find_places(sizes.tolist(), batch.numbers)
        ends = np.cumsum(sizes)
        begins = ends - sizes
        breaks = np.flatnonzero(starts[1:] != starts[:-1] + sizes[:-1]) + 1
        view = memoryview(data)
        for first, last in pairwise([0, *breaks.tolist(), len(rows)]):
            if first < last:
                write_all(self._file, view[begins[first] : ends[last - 1]], int(starts[first]))
        move_pointers(rows, starts, sizes)
        write_all(self._file, rows.tobytes(), self._tables_at + state.placed * rows.itemsize)
        table = np.zeros(len(rooms), dtype=ALLOCATION)
        table["sample_id"] = state.placed + owners
        table["ptr"] = starts[owners] + np.cumsum(rooms) - rooms - begins[owners]
        table["size"] = batch.sizes
        write_all(self._table, table.tobytes(), state.extents * table.itemsize)
        self.state = replace(
            self.state,
            position=int(starts[-1] + sizes[-1]) if len(rows) else state.position,
            done=state.done + len(batch),
            placed=state.placed + len(rows),
            extents=state.extents + len(table),
            skipped=(*state.skipped, *batch.skipped),
        )
        is_idle = self._saving is None or self._saving.done()
        is_much = self.state.position - self._saved.position >= COMMIT_BYTES
        if is_idle and (is_much or time.monotonic() - self._saved_at >= COMMIT_SECONDS):
            self._save()

    def finish(self) -> int:
        """Fill the last page, append the allocation table, and return where the table starts."""
        self._wait()
        end = -(-self.state.position // self.state.page_size) * self.state.page_size
        os.ftruncate(self._file, end)
        table = self._journal.read_table(self.state)
        write_all(self._file, table.view(np.uint8).data, end)
        return end

    def __enter__(self) -> "PageWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._saver.shutdown(wait=True)
        os.close(self._table)

    def _find_places(self, sizes: list[int], numbers: list[int]) -> NDArray[np.int64]:
        page, position, starts = self.state.page_size, self.state.position, []
        for size, number in zip(sizes, numbers, strict=True):
            while size > page and self._grows and page < LARGEST_PAGE:
                page *= 2
            if size > page:
                raise ValueError(
                    f"Sample {number} has {size} bytes and does not fit into a page. Pass a larger "
                    f"`page_size` than {page}, a power of two."
                )
            left = page - position % page
            if size > left:
                position += left
            starts.append(position)
            position += size
        self.state = replace(self.state, page_size=page)
        return np.array(starts, dtype=np.int64)

    def _save(self) -> None:
        """Record the state in the background, after its bytes were flushed to the disk."""
        self._wait()
        self._saved, self._saved_at = self.state, time.monotonic()
        self._saving = self._saver.submit(self._record, self.state)

    def _record(self, state: WriteState) -> None:
        os.fdatasync(self._file)
        os.fdatasync(self._table)
        self._journal.write(state)

    def _wait(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None


def move_pointers(rows: NDArray[Any], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Replace pointers that count from `MARK` by places in the file, in the metadata `rows`.

    `starts` and `sizes` are the first byte and the number of bytes of each sample.
    """
    base, room = starts.astype(np.uint64)[:, None], sizes.astype(np.uint64)[:, None]
    for path in uint64_paths(rows.dtype, signed=True):
        values = leaf(rows, path).view(np.uint64)
        offsets = values - np.uint64(MARK)  # wraps to a large number for values below MARK
        np.copyto(values, offsets + base, where=offsets <= room)
