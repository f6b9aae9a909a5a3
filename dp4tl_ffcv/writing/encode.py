"""Encode samples in batches, in worker processes. Their places in the file are not yet known."""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 16  # samples per batch, unless they are large
SLOT_BYTES = 16 << 20  # bytes that a batch should not exceed

# Pointers of an encoded sample start at this random number, so that they can be told apart from
# other 64-bit values.
MARK = 0x6D1F_83A9_50C7_E42B


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded sample."""

    row: NDArray[Any]
    """Metadata `(1,)`. The first byte of the sample has the pointer `MARK`."""
    blobs: list[NDArray[np.uint8]]
    """The bytes of each field of variable length, in order."""


class Allocator:
    """The `malloc` argument of a field's `encode`. `blobs` collects the memory."""

    def __init__(self) -> None:
        self.blobs: list[NDArray[np.uint8]] = []
        self._pointer = MARK

    def __call__(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Return a pointer to `size` bytes, and their memory."""
        pointer, blob = self._pointer, np.empty(size, dtype=np.uint8)
        self.blobs.append(blob)
        self._pointer += max(1, size)
        return pointer, blob


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of encoded samples."""

    numbers: list[int]
    """Numbers of the samples that could be encoded."""
    rows: NDArray[Any]
    """Metadata `(n,)`, as in `Encoded`."""
    extents: NDArray[np.int64]
    """Number of blobs of each sample `(n,)`."""
    sizes: NDArray[np.int64]
    """Bytes of each blob, over all samples."""
    data: bytes | None
    """All blobs in order; an empty blob has one byte. None if they are in the task's slot."""
    skipped: list[dict[str, Any]]
    """Samples that could not be encoded: `sample`, `name`, `error`."""

    def __len__(self) -> int:
        return len(self.rows) + len(self.skipped)


class Tasks:
    """Divides the samples `numbers` into numbered tasks. Large samples make smaller tasks."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self._numbers = numbers
        self._size = 1  # until the size of a sample is known

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        task = start = 0
        while start < len(self._numbers):
            end = start + self._size
            yield task, self._numbers[start:end]
            task, start = task + 1, end

    def adapt(self, batch: Batch) -> None:
        """Size later tasks so that samples as large as those of `batch` fill half a slot."""
        if len(batch.rows):
            each = int(batch.sizes.sum()) // len(batch.rows) + 1
            self._size = min(BATCH, max(1, SLOT_BYTES // (2 * each)))


class BatchEncoder:
    """Encodes batches of samples. `encode(number)` returns a sample of record type `dtype`.

    Worker processes return the bytes of a batch through shared memory, faster than through a pipe:
    task k uses slot `k % num_slots`. Create the encoder before the workers are forked.
    """

    def __init__(
        self,
        encode: Callable[[int], Encoded],
        name_of: Callable[[int], str],
        dtype: np.dtype[Any],
        num_slots: int,
    ) -> None:
        self._encode, self._name_of, self._dtype = encode, name_of, dtype
        self._num_slots = num_slots
        self._memory = mmap.mmap(-1, num_slots * SLOT_BYTES) if num_slots else None

    def __call__(self, task: tuple[int, NDArray[np.int64]]) -> Batch:
        """Encode the samples of a task, given as its number and the numbers of the samples."""
        numbers, samples, skipped = [], [], []
        for number in task[1].tolist():
            try:
                samples.append(self._encode(number))
                numbers.append(number)
            except MemoryError as error:  # not a fault of the sample, so it is never skipped
                raise MemoryError(f"no memory for sample {number}") from error
            except Exception as error:  # datasets and codecs may raise any error
                text = _text_of(error)
                skipped.append({"sample": number, "name": self._name_of(number), "error": text})
        rows = np.zeros(len(samples), dtype=self._dtype)  # with zeros between the columns
        for place, sample in enumerate(samples):
            rows[place] = sample.row[0]
        blobs = [blob for sample in samples for blob in sample.blobs]
        extents = np.array([len(sample.blobs) for sample in samples], dtype=np.int64)
        sizes = np.array([blob.size for blob in blobs], dtype=np.int64)
        data = self._hand_over(task[0], blobs)
        return Batch(numbers, rows, extents, sizes, data, skipped)

    def data_of(self, task: int, batch: Batch) -> bytes | memoryview:
        """Return the bytes of a task's batch, from the batch or from its slot."""
        if batch.data is not None:
            return batch.data
        return self._slot(task, int(np.maximum(1, batch.sizes).sum())) or b""

    def _hand_over(self, task: int, blobs: list[NDArray[np.uint8]]) -> bytes | None:
        parts = [blob.data if blob.size else b"\0" for blob in blobs]
        slot = self._slot(task, sum(map(len, parts)))
        if slot is None:
            return b"".join(parts)
        end = 0
        for part in parts:
            start, end = end, end + len(part)
            slot[start:end] = part
        return None

    def _slot(self, task: int, size: int) -> memoryview | None:
        """Return the first `size` bytes of a task's slot, or None if the slot is smaller."""
        if self._memory is None or size > SLOT_BYTES:
            return None
        start = task % self._num_slots * SLOT_BYTES
        return memoryview(self._memory)[start : start + size]


def _text_of(error: Exception) -> str:
    """Return the error's text, with its type if the text alone is not clear."""
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"
