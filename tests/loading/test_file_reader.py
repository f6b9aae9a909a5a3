"""Requests read the right bytes, or raise an error that names the sample."""

import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError
from dp4tl_ffcv.loading.reading import file_reader
from dp4tl_ffcv.loading.reading.extents import RetainedExtents
from dp4tl_ffcv.loading.reading.file_reader import FileReader

SIZE = 100_000
PER_SAMPLE = 1000


@cache
def content() -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, SIZE, dtype=np.uint8)


NUM_SAMPLES = SIZE // PER_SAMPLE
# Sample 3 has the bytes 3000 to 3999, and so on.
EXTENTS = RetainedExtents(
    ptrs=np.arange(NUM_SAMPLES, dtype=np.uint64) * PER_SAMPLE,
    sizes=np.full(NUM_SAMPLES, PER_SAMPLE),
    owners=np.arange(NUM_SAMPLES),
    samples=np.arange(NUM_SAMPLES),
    rows=np.arange(NUM_SAMPLES),
    starts=np.arange(NUM_SAMPLES + 1),
)


def read(reader: FileReader, memory: NDArray[np.uint8], *rows: tuple[int, int, int]) -> None:
    """Read the requests `(offset, size, place)`."""
    reader.read(np.array(rows, dtype=np.int64), memory, EXTENTS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.beton"
    path.write_bytes(content().tobytes())
    return path


@pytest.fixture
def reader(path: Path) -> FileReader:
    return FileReader(str(path))


@pytest.fixture(params=["compiled", "checked"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in compiled code, and as if it were interrupted at every request."""
    if request.param == "checked":
        monkeypatch.setattr(file_reader, "_read_requests", lambda file, requests, memory: 0)


@pytest.mark.parametrize("met", [0, 1, 2])
def test_an_interrupted_request_is_read_in_pieces(
    met: int, reader: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, pieces = os.preadv, []
    compiled = file_reader._read_requests

    def interrupted(file: int, requests: Any, memory: Any) -> int:
        return min(met, int(compiled(file, requests, memory)))

    def in_pieces(file: int, buffers: Any, offset: int) -> int:
        pieces.append(offset)
        return preadv(file, [buffers[0][:7]], offset)

    monkeypatch.setattr(file_reader, "_read_requests", interrupted)
    monkeypatch.setattr(os, "preadv", in_pieces)
    memory = np.zeros(90, dtype=np.uint8)
    read(reader, memory, (10, 30, 60), (500, 30, 0), (70, 30, 30))
    expected = [*content()[500:530], *content()[70:100], *content()[10:40]]
    assert memory.tolist() == expected
    assert len(pieces) == (15 if met == 0 else 5)  # 30 bytes in pieces of 7
    assert reader.bytes_read == 90


# Failing reads.


@pytest.mark.parametrize(
    ("offset", "size", "at", "missing", "sample"),
    [(59_900, 200, 60_000, 100, 60), (60_000, 10, 60_000, 10, 60), (70_500, 99, 70_500, 99, 70)],
    ids=["ends within", "ends before", "ends long before"],
)
def test_a_truncated_file_is_an_error_that_names_the_sample(
    offset: int, size: int, at: int, missing: int, sample: int,
    path: Path, reader: FileReader, both_ways: None,
) -> None:  # fmt: skip
    os.truncate(path, 60_000)
    memory = np.zeros(1000, dtype=np.uint8)
    found = rf"sample {sample} of '.*a\.beton' at byte {at}: the file is {missing} bytes too short"
    with pytest.raises(BetonError, match=rf"^cannot read {found}"):
        read(reader, memory, (0, 500, 0), (offset, size, 500))
    read(reader, memory, (0, 500, 0), (59_900, 100, 500))  # the remaining bytes are still read
    assert memory[:600].tolist() == [*content()[:500], *content()[59_900:60_000]]


def test_an_empty_file_and_huge_offsets_are_errors(path: Path, reader: FileReader) -> None:
    memory = np.zeros(10, dtype=np.uint8)
    for offset in (2**40, 2**62):
        with pytest.raises(BetonError, match=f"sample 99 of .* at byte {offset}:"):
            read(reader, memory, (offset, 10, 0))
    os.truncate(path, 0)
    with pytest.raises(BetonError, match=r"sample 0 of .* at byte 0: .* 10 bytes too short"):
        read(reader, memory, (0, 10, 0))


@pytest.mark.parametrize(
    ("unreadable", "error"), [("/proc/self/mem", errno.EIO), (".", errno.EISDIR)]
)
def test_an_unreadable_file_is_an_error(unreadable: str, error: int) -> None:
    reader = FileReader(unreadable)
    with pytest.raises(BetonError, match=rf"sample 4 of .* at byte 4000: {os.strerror(error)}"):
        read(reader, np.zeros(10, np.uint8), (4000, 10, 0))
    assert reader.bytes_read == 0
