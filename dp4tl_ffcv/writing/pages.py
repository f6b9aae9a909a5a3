"""A beton while it is written: samples placed on pages, and a journal to continue from.

Beside the unfinished file `.NAME.part` lie `.NAME.part.table`, the allocation table so far, and
`.NAME.part.json`, which says how far both are valid. Memory holds the tables of a few thousand
samples at most.
"""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import part_path
from ..beton import format
from .encode import MARK, Batch

LARGEST_PAGE = 1 << 31  # the header has 32 bits for it
# What is lost at most when the process is killed.
COMMIT_BYTES = 128 << 20
COMMIT_SECONDS = 5.0
TABLE_ROWS = 1 << 12  # samples whose rows of the tables are held back at most


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a beton is written."""

    key: str
    """What is being written: a part with another key is not continued."""
    page_size: int
    position: int
    """Where the next sample goes."""
    done: int = 0
    """Samples that were placed or skipped."""
    placed: int = 0
    extents: int = 0
    skipped: tuple[dict[str, Any], ...] = ()


class Journal:
    """The files beside an unfinished beton.

    Args:
        target: the beton.
    """

    def __init__(self, target: Path) -> None:
        self.part = part_path(target)
        self.table = self.part.with_name(f"{self.part.name}.table")
        self._state = self.part.with_name(f"{self.part.name}.json")

    def read(self) -> Progress | None:
        """Return how far a killed run came, if it can be told."""
        try:
            stored = json.loads(self._state.read_text())
            progress = Progress(**{**stored, "skipped": tuple(stored["skipped"])})
            whole = (
                self.part.stat().st_size >= progress.position
                and self.table.stat().st_size >= progress.extents * format.ALLOCATION.itemsize
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return progress if whole else None

    def write(self, progress: Progress) -> None:
        """Record how far the part and its table, both on the disk by now, are valid."""
        temporary = self._state.with_name(f"{self._state.name}.new")
        temporary.write_text(json.dumps(asdict(progress)))
        temporary.replace(self._state)

    def written(self) -> bool:
        """Say whether there is something to continue from."""
        return self._state.exists()

    def remove(self) -> None:
        """Delete the files beside the part, the record first."""
        self._state.with_name(f"{self._state.name}.new").unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.table.unlink(missing_ok=True)


class PagedPart:
    """Places samples on the pages of an unfinished beton.

    A sample never crosses a page, as ffcv's page cache needs. A page may grow while samples are
    placed: two pages that a page twice their size covers keep their samples apart as before.

    Args:
        stream: the unfinished file, locked.
        journal: its files beside it.
        progress: where to go on.
        tables_at: where the metadata starts.
        grows: double the page size when a sample needs it; else that is an error.
    """

    def __init__(
        self, stream: IO[bytes], journal: Journal, progress: Progress, tables_at: int, grows: bool
    ) -> None:
        self.progress = progress
        self._file = stream.fileno()
        self._journal = journal
        self._tables_at = tables_at
        self._grows = grows
        self._rows: list[NDArray[Any]] = []
        self._allocations: list[NDArray[Any]] = []
        self._tabled = progress.placed
        self._saved = progress
        self._saved_at = time.monotonic()
        self._saving: Future[None] | None = None
        self._saver = ThreadPoolExecutor(1)
        self._table = os.open(journal.table, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # What a killed run wrote beyond its record must not show in the gaps of this one.
        os.ftruncate(self._file, progress.position)
        os.ftruncate(self._table, progress.extents * format.ALLOCATION.itemsize)

    def place(self, batch: Batch, data: bytes | memoryview, names: Sequence[int]) -> None:
        """Write the samples of a batch.

        Args:
            batch: the samples, whose pointers become places in the file.
            data: their extents, one behind the other.
            names: number of each sample, for messages.

        Raises:
            ValueError: a sample does not fit into a page.
        """
        owners = np.repeat(np.arange(len(batch.rows)), batch.extents)
        rooms = _room_of(batch.sizes)
        sizes = np.bincount(owners, weights=rooms, minlength=len(batch.rows)).astype(np.int64)
        starts = self._find_places(sizes.tolist(), names)
        ends = np.cumsum(sizes)
        self._write(data, starts, (ends - sizes).tolist(), ends.tolist())
        first = np.array(starts, dtype=np.int64)
        rows = batch.rows
        move_pointers(rows, first, sizes)
        allocations = np.zeros(len(rooms), dtype=format.ALLOCATION)
        allocations["sample_id"] = self.progress.placed + owners
        within = np.cumsum(rooms) - rooms - (ends - sizes)[owners]
        allocations["ptr"] = first[owners] + within
        allocations["size"] = batch.sizes
        self._rows.append(rows)
        self._allocations.append(allocations)
        self.progress = replace(
            self.progress,
            position=starts[-1] + int(sizes[-1]) if starts else self.progress.position,
            done=self.progress.done + len(rows) + len(batch.skipped),
            placed=self.progress.placed + len(rows),
            extents=self.progress.extents + len(allocations),
            skipped=(*self.progress.skipped, *batch.skipped),
        )
        if self._is_due():
            self._save()
        elif self.progress.placed - self._tabled >= TABLE_ROWS:
            self._write_tables()

    def finish(self) -> int:
        """Fill up the last page, append the allocation table, and return where it starts."""
        self._wait()
        self._write_tables()
        end = -(-self.progress.position // self.progress.page_size) * self.progress.page_size
        os.ftruncate(self._file, end)
        with os.fdopen(os.dup(self._table), "rb") as table:
            table.seek(0)
            position = end
            while block := table.read(1 << 22):
                position += _write_all(self._file, block, position)
        return end

    def __enter__(self) -> "PagedPart":
        return self

    def __exit__(self, *_: object) -> None:
        self._saver.shutdown(wait=True)
        os.close(self._table)

    def _find_places(self, sizes: Sequence[int], names: Sequence[int]) -> list[int]:
        page, position, starts = self.progress.page_size, self.progress.position, []
        for size, name in zip(sizes, names, strict=True):
            while size > page and self._grows and page < LARGEST_PAGE:
                page *= 2
            if size > page:
                raise ValueError(
                    f"`page_size` must hold the largest sample; got {page}, and sample "
                    f"{name} takes {size} bytes. Pass a larger power of two."
                )
            left = page - position % page
            if size > left:
                position += left
            starts.append(position)
            position += size
        self.progress = replace(self.progress, page_size=page)
        return starts

    def _write(
        self,
        data: bytes | memoryview,
        places: Sequence[int],
        begins: Sequence[int],
        ends: Sequence[int],
    ) -> None:
        """Write samples `data[begin:end]` at their places, neighbours in one go."""
        view, first = memoryview(data), 0
        for number in range(1, len(places) + 1):
            if (
                number < len(places)
                and places[number] - places[first] == begins[number] - (begins[first])
            ):
                continue
            _write_all(self._file, view[begins[first] : ends[number - 1]], places[first])
            first = number

    def _is_due(self) -> bool:
        idle = self._saving is None or self._saving.done()
        much = self.progress.position - self._saved.position >= COMMIT_BYTES
        return idle and (much or time.monotonic() - self._saved_at >= COMMIT_SECONDS)

    def _save(self) -> None:
        """Bring the tables up to date, and record that once all of it is on the disk."""
        self._wait()
        self._write_tables()
        self._saved, self._saved_at = self.progress, time.monotonic()
        self._saving = self._saver.submit(self._record, self.progress)

    def _record(self, progress: Progress) -> None:
        os.fdatasync(self._file)
        os.fdatasync(self._table)
        self._journal.write(progress)

    def _wait(self) -> None:
        if self._saving is not None:
            self._saving.result()  # raises what went wrong in it
            self._saving = None

    def _write_tables(self) -> None:
        if self._rows:
            first = self.progress.placed - sum(map(len, self._rows))
            # Joined as bytes: numpy does not copy what lies between the columns.
            data = b"".join(rows.tobytes() for rows in self._rows)
            _write_all(self._file, data, self._tables_at + first * self._rows[0].itemsize)
        if self._allocations:
            table = np.concatenate(self._allocations)
            first = self.progress.extents - len(table)
            _write_all(self._table, table.tobytes(), first * table.itemsize)
        self._rows, self._allocations = [], []
        self._tabled = self.progress.placed


def _room_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes that extents take: ffcv finds one by its start, so no two may share one."""
    return np.maximum(1, sizes)


def move_pointers(rows: NDArray[Any], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Let the pointers of samples, which count from `MARK`, count from the samples' places.

    Args:
        rows: metadata `(n,)`, changed in place.
        starts: where the samples lie `(n,)`.
        sizes: bytes that each takes `(n,)`.
    """
    base, room = starts.astype(np.uint64)[:, None], sizes.astype(np.uint64)[:, None]
    for path in format.uint64_paths(rows.dtype, signed=True):
        values = format.leaf(rows, path).view(np.uint64)
        offsets = values - np.uint64(MARK)  # wraps around for what is no pointer
        np.copyto(values, offsets + base, where=offsets <= room)


def _write_all(file: int, data: Any, position: int) -> int:
    view = memoryview(data)
    written = 0
    while written < len(view):
        written += os.pwrite(file, view[written:], position + written)
    return written
