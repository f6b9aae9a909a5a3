"""Reading requests: the right bytes, or an error that names the sample."""

import errno
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
# Sample 3 lies at bytes 3000 to 3999, and so on.
EXTENTS = RetainedExtents(
    ptrs=np.arange(NUM_SAMPLES, dtype=np.uint64) * PER_SAMPLE,
    sizes=np.full(NUM_SAMPLES, PER_SAMPLE),
    owners=np.arange(NUM_SAMPLES),
    samples=np.arange(NUM_SAMPLES),
    rows=np.arange(NUM_SAMPLES),
    starts=np.arange(NUM_SAMPLES + 1),
)


def read(reader: FileReader, memory: NDArray[np.uint8], *rows: tuple[int, int, int]) -> None:
    """Meet requests `(offset, size, place)`."""
    reader.read(requests_of(*rows), memory, EXTENTS)


def requests_of(*rows: tuple[int, int, int]) -> NDArray[np.int64]:
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.beton"
    path.write_bytes(content().tobytes())
    return path


@pytest.fixture
def reader(path: Path) -> FileReader:
    return FileReader(str(path))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FileReader:
    path = tmp_path_factory.mktemp("reading") / "a.beton"
    path.write_bytes(content().tobytes())
    return FileReader(str(path))


@pytest.fixture(params=["compiled", "checked"])
def by_both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In compiled code, and as if that were interrupted at every request."""
    if request.param == "checked":
        monkeypatch.setattr(file_reader, "_read_requests", lambda file, requests, memory: 0)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    pieces=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3000)), max_size=30),
    gap=st.integers(0, 70),
)
def test_requests_are_met_byte_for_byte(
    pieces: list[tuple[int, int]], gap: int, shared: FileReader
) -> None:
    rows, place = [], 0
    for offset, size in pieces:
        size = min(size, SIZE - offset)
        rows.append((offset, size, place))
        place += size + gap
    expected = np.full(place, 7, dtype=np.uint8)
    memory = expected.copy()
    for offset, size, at in rows:
        expected[at : at + size] = content()[offset : offset + size]
    before = shared.bytes_read
    read(shared, memory, *rows)
    np.testing.assert_array_equal(memory, expected)  # and nothing was written in between
    assert shared.bytes_read - before == sum(size for _, size, _ in rows)


def test_requests_are_met_out_of_the_way_of_the_compiled_code(
    reader: FileReader, by_both_ways: None
) -> None:
    memory = np.zeros(600, dtype=np.uint8)
    read(reader, memory, (5000, 200, 300), (0, 300, 0), (SIZE - 100, 100, 500))
    expected = np.concatenate([content()[:300], content()[5000:5200], content()[-100:]])
    np.testing.assert_array_equal(memory, expected)
    assert reader.bytes_read == 600


@pytest.mark.parametrize("met", [0, 1, 2])
def test_a_request_that_was_interrupted_is_read_in_pieces(
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


def test_threads_read_at_the_same_time(shared: FileReader) -> None:
    rng, before = np.random.default_rng(9), shared.bytes_read
    memory = np.zeros((8, 50 * 700), dtype=np.uint8)
    offsets = rng.integers(0, SIZE - 700, (8, 50))
    tables = [
        requests_of(*((int(offset), 700, 700 * at) for at, offset in enumerate(row)))
        for row in offsets
    ]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            memory[:] = 0
            list(threads.map(shared.read, tables, memory, repeat(EXTENTS)))
            for row, found in zip(offsets, memory, strict=True):
                expected = np.concatenate([content()[offset : offset + 700] for offset in row])
                np.testing.assert_array_equal(found, expected)
    assert shared.bytes_read - before == 20 * memory.size


def test_no_requests_read_nothing(reader: FileReader) -> None:
    read(
        reader,
        np.zeros(0, np.uint8),
    )
    assert reader.bytes_read == 0


# What cannot be read.


@pytest.mark.parametrize(
    ("offset", "size", "at", "missing", "sample"),
    [(59_900, 200, 60_000, 100, 60), (60_000, 10, 60_000, 10, 60), (70_500, 99, 70_500, 99, 70)],
    ids=["ends within", "ends before", "ends long before"],
)
def test_a_file_that_ends_early_is_an_error_that_names_the_sample(
    offset: int, size: int, at: int, missing: int, sample: int,
    path: Path, reader: FileReader, by_both_ways: None,
) -> None:  # fmt: skip
    os.truncate(path, 60_000)
    memory = np.zeros(1000, dtype=np.uint8)
    found = rf"sample {sample} of '.*a\.beton' at byte {at}: the file is {missing} bytes too short"
    with pytest.raises(BetonError, match=rf"^cannot read {found}"):
        read(reader, memory, (0, 500, 0), (offset, size, 500))
    read(reader, memory, (0, 500, 0), (59_900, 100, 500))  # the rest is still read
    assert memory[:600].tolist() == [*content()[:500], *content()[59_900:60_000]]


def test_an_empty_file_and_one_beyond_any_size_are_errors(path: Path, reader: FileReader) -> None:
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
def test_what_the_system_refuses_to_read_is_an_error(unreadable: str, error: int) -> None:
    reader = FileReader(unreadable)
    with pytest.raises(BetonError, match=rf"sample 4 of .* at byte 4000: {os.strerror(error)}"):
        read(reader, np.zeros(10, np.uint8), (4000, 10, 0))
    assert reader.bytes_read == 0


def test_a_disk_that_fails_in_the_middle_is_an_error(
    path: Path, reader: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(file_reader, "_read_requests", lambda *_: 0)
    with pytest.raises(
        BetonError, match=r"sample 2 of .* at byte 2500: Input/output error"
    ) as raised:
        read(reader, np.zeros(10, np.uint8), (2500, 10, 0))
    assert isinstance(raised.value.__cause__, OSError)


def test_an_error_in_one_thread_leaves_the_others(path: Path, reader: FileReader) -> None:
    os.truncate(path, 50_000)
    memory = np.zeros((8, 100), dtype=np.uint8)
    with ThreadPoolExecutor(8) as threads:
        tasks = [threads.submit(read, reader, memory[at], (9_000 * at, 100, 0)) for at in range(8)]
    for at, task in enumerate(tasks):
        if 9_000 * at < 50_000:
            task.result()
            np.testing.assert_array_equal(memory[at], content()[9_000 * at :][:100])
        else:
            with pytest.raises(BetonError, match=f"sample {9 * at} of"):
                task.result()


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileReader(str(tmp_path / "none.beton"))


def first_extents(count: int) -> RetainedExtents:
    return replace(EXTENTS, ptrs=EXTENTS.ptrs[:count], sizes=EXTENTS.sizes[:count])


@pytest.mark.parametrize("count", [0, 1, NUM_SAMPLES])
def test_a_file_of_the_size_it_had_passes(count: int, reader: FileReader) -> None:
    reader.check_size(first_extents(count))


def test_a_file_that_shrank_is_refused(path: Path, reader: FileReader) -> None:
    os.truncate(path, 30_500)
    reader.check_size(first_extents(30))
    found = "cannot read sample 30 of .* at byte 30500: the file is 69500 bytes too short"
    with pytest.raises(BetonError, match=f"^{found}"):
        reader.check_size(EXTENTS)


# The descriptor.


def descriptors_of(path: Path) -> int:
    """Count the open descriptors of a file, whatever its name is by now."""
    number, count = path.stat().st_ino, 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):  # the one of the listing
            count += os.fstat(int(name)).st_ino == number
    return count


def test_the_file_is_closed_when_nobody_reads_it_any_more(path: Path) -> None:
    assert descriptors_of(path) == 0
    readers = [FileReader(str(path)) for _ in range(3)]
    assert descriptors_of(path) == 3
    assert not any(os.get_inheritable(reader.file) for reader in readers)
    readers.pop()
    gc.collect()
    assert descriptors_of(path) == 2
    readers.clear()
    gc.collect()
    assert descriptors_of(path) == 0


def test_the_file_is_closed_after_an_error(path: Path) -> None:
    os.truncate(path, 10)
    reader = FileReader(str(path))
    with pytest.raises(BetonError):
        read(reader, np.zeros(11, np.uint8), (0, 11, 0))
    del reader
    gc.collect()
    assert descriptors_of(path) == 0


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_is_exchanged_is_read_as_it_was(
    how: str, path: Path, reader: FileReader, by_both_ways: None
) -> None:
    if how == "replaced":
        other = path.with_name("other")
        other.write_bytes(bytes(10))
        other.replace(path)
    else:
        path.unlink()
    memory = np.zeros(300, dtype=np.uint8)
    read(reader, memory, (70_000, 300, 0))
    np.testing.assert_array_equal(memory, content()[70_000:70_300])
    reader.check_size(EXTENTS)
