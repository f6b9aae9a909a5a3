"""Samples encoded in batches by worker processes, before they have a place."""

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 16  # samples: what a worker hands over at a time, unless they are large
SLOT_BYTES = 16 << 20  # what a batch should have at most

# Until a sample has a place its pointers count from this number, drawn at random, by which they
# are told from what else a field may keep in 64 bits.
MARK = 0x6D1F_83A9_50C7_E42B


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample before it has a place."""

    row: NDArray[Any]
    """Metadata `(1,)`; pointers count from `MARK`, the first byte of the sample."""
    blobs: list[NDArray[np.uint8]]
    """Its extents, in order."""


class Allocator:
    """Gives a field's `encode` the bytes that it asks for, and keeps them as a sample's extents."""

    def __init__(self) -> None:
        self.blobs: list[NDArray[np.uint8]] = []
        self._pointer = MARK

    def __call__(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the pointer to an extent of `size` bytes, and its memory."""
        pointer, blob = self._pointer, np.empty(size, dtype=np.uint8)
        self.blobs.append(blob)
        self._pointer += max(1, size)
        return pointer, blob


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded samples before they have a place."""

    rows: NDArray[Any]
    """Metadata `(n,)`; pointers count from `MARK`, the first byte of their sample."""
    extents: NDArray[np.int64]
    """Extents of each sample `(n,)`."""
    sizes: NDArray[np.int64]
    """Bytes of each extent, over all samples."""
    data: bytes | None
    """The extents one behind the other; an empty one takes a byte. None: they are in the slot."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Samples that could not be encoded: `sample`, `name`, `error`."""

    def __len__(self) -> int:
        return len(self.rows) + len(self.skipped)


class Tasks:
    """Deals samples out in batches, of fewer samples where these are large.

    Args:
        numbers: of the samples `(n,)`, in order.
    """

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self._numbers = numbers
        self._size = 1  # until it is known how large samples are
        self._sent: deque[NDArray[np.int64]] = deque()

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        task = start = 0
        while start < len(self._numbers):
            self._sent.append(self._numbers[start : start + self._size])
            start += len(self._sent[-1])
            yield task, self._sent[-1]
            task += 1

    def taken(self) -> list[int]:
        """Return the numbers of the batch whose turn it is."""
        numbers: list[int] = self._sent.popleft().tolist()
        return numbers

    def adapt(self, batch: Batch) -> None:
        """Let the batches that follow have about half of what a slot holds, by this one."""
        if len(batch.rows):
            each = int(batch.sizes.sum()) // len(batch.rows) + 1
            self._size = min(BATCH, max(1, SLOT_BYTES // (2 * each)))


class Slots:
    """Memory through which worker processes hand over data without copying it through a pipe.

    Made before the processes are forked. What is not used takes no memory.

    Args:
        count: slots; task number `k` uses slot `k % count`.
        size: bytes of each.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._memory = mmap.mmap(-1, count * size) if count else None

    def view(self, task: int, size: int) -> memoryview | None:
        """Return the first bytes of a task's slot, or None if it has not as many."""
        if self._memory is None or size > self.size:
            return None
        start = task % self.count * self.size
        return memoryview(self._memory)[start : start + size]


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes batches of samples.

    Args:
        encode: makes a sample of its number.
        name_of: what a sample is called.
        dtype: of the metadata.
        stop_early: leave the rest of a batch when a sample fails.
        slots: where the data goes if it fits.
    """

    encode: Callable[[int], Encoded]
    name_of: Callable[[int], str]
    dtype: np.dtype[Any]
    stop_early: bool
    slots: Slots

    def __call__(self, task: tuple[int, NDArray[np.int64]]) -> Batch:
        """Encode the samples of a task: its number, and those of the samples."""
        rows, blobs, extents, skipped = [], [], [], []
        for number in task[1].tolist():
            try:
                encoded = self.encode(number)
            except MemoryError as error:  # need not be the sample's fault: never left out
                raise MemoryError(f"no memory for sample {number}") from error
            except Exception as error:  # whatever a dataset or a codec raises
                text = _text_of(error)
                skipped.append({"sample": number, "name": self.name_of(number), "error": text})
                if self.stop_early:
                    break
                continue
            rows.append(encoded.row)
            extents.append(len(encoded.blobs))
            blobs += encoded.blobs
        table = np.zeros(len(rows), dtype=self.dtype)  # with zeros between the columns, too
        for place, row in enumerate(rows):
            table[place] = row[0]
        return Batch(
            rows=table,
            extents=np.array(extents, dtype=np.int64),
            sizes=np.array([blob.size for blob in blobs], dtype=np.int64),
            data=self._hand_over(task[0], blobs),
            skipped=skipped,
        )

    def data_of(self, task: int, batch: Batch) -> bytes | memoryview:
        """Return the data of a task's batch, from wherever it lies."""
        if batch.data is not None:
            return batch.data
        data = self.slots.view(task, int(np.maximum(1, batch.sizes).sum()))
        return b"" if data is None else data

    def _hand_over(self, task: int, blobs: list[NDArray[np.uint8]]) -> bytes | None:
        pieces = [blob.data if blob.size else b"\0" for blob in blobs]
        slot = self.slots.view(task, sum(map(len, pieces)))
        if slot is None:
            return b"".join(pieces)
        end = 0
        for piece in pieces:
            start, end = end, end + len(piece)
            slot[start:end] = piece
        return None


def _text_of(error: Exception) -> str:
    """Return what went wrong; of errors whose text says little, with their kind."""
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
