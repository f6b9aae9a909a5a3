"""Requests read the right bytes, or raise an error that names the sample."""

import ctypes
import errno
import gc
import mmap
import os
import tempfile
from functools import cache
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
from dp4tl_ffcv.loading.reading.file_reader import SECTORS, FileReader
from dp4tl_ffcv.loading.reading.plan import plan_epoch
from dp4tl_ffcv.loading.reading.shared_memory import FOLDER, private_bytes
from tests.loading.test_plan import check_places, tables

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


# Ways to read: bytes of the page cache; direct I/O; whole pages, as without direct I/O.
WAYS = ("cached", "direct", "pages")


def open_(path: Path, way: str) -> FileReader:
    reader = FileReader(str(path))
    if way == "direct":
        reader._map = np.empty(0, dtype=np.uint8)  # it cannot ask for cached pages
    elif way == "pages":
        reader.direct = reader.file
    return reader


@pytest.fixture(params=WAYS)
def reader(request: pytest.FixtureRequest, path: Path) -> FileReader:
    return open_(path, request.param)


@pytest.fixture(params=["compiled", "checked"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in compiled code, and as if it were interrupted at every request."""
    if request.param == "checked":
        monkeypatch.setattr(file_reader, "_read_requests", lambda *_: 0)


@pytest.fixture(scope="module", params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of the disk, or of the memory file system, which has no direct I/O of its own."""
    if request.param == "disk":
        yield tmp_path_factory.mktemp("disk")
    else:
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix="dp4tl-test-") as name:
            yield Path(name)


@pytest.mark.parametrize("way", WAYS)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(extents=tables(), scale=st.sampled_from([1, 7, 512, 700]), data=st.data())
def test_every_byte_range_arrives(
    way: str, extents: RetainedExtents, scale: int, data: st.DataObject, folder: Path
) -> None:
    ptrs = extents.ptrs * np.uint64(scale)
    sizes = np.maximum(1, extents.sizes * scale - data.draw(st.integers(0, scale - 1)))
    extents = RetainedExtents(
        ptrs, sizes, extents.owners, extents.samples, extents.rows, extents.starts
    )
    end = int((ptrs.astype(np.int64) + sizes).max())
    file = np.resize(content(), end + data.draw(st.integers(0, 5000)))
    (folder / "a.beton").write_bytes(file.tobytes())
    reader = open_(folder / "a.beton", way)
    order = data.draw(st.permutations(extents.samples.tolist()))
    plan = plan_epoch(extents, np.array(order), data.draw(st.integers(1, 13)), reader.sector)
    for window in range(plan.num_windows):
        memory = private_bytes(int(plan.window_bytes[window]))
        requests = slice(*plan.request_starts[window : window + 2])
        reader.read(plan.requests[requests], memory, extents)
        rows = slice(*plan.row_starts[window : window + 2])
        check_places(extents, plan.rows[rows], plan.places[rows], memory, file)
    assert reader.bytes_read == plan.read_bytes


@pytest.mark.parametrize("met", [0, 1, 2])
def test_an_interrupted_request_is_read_in_pieces(
    met: int, reader: FileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, pieces = os.preadv, []
    compiled = file_reader._read_requests

    def interrupted(*arguments: Any) -> int:
        return min(met, int(compiled(*arguments)))

    def in_pieces(file: int, buffers: Any, offset: int) -> int:
        pieces.append(offset)
        return preadv(file, [buffers[0][:7]], offset)

    monkeypatch.setattr(file_reader, "_read_requests", interrupted)
    monkeypatch.setattr(os, "preadv", in_pieces)
    memory = private_bytes(3 * 512)
    read(reader, memory, (512, 30, 1024), (5120, 30, 0), (1024, 30, 512))
    for place, offset in ((1024, 512), (0, 5120), (512, 1024)):
        assert memory[place : place + 30].tolist() == content()[offset : offset + 30].tolist()
    assert len(pieces) == (15 if met == 0 else 5)  # 30 bytes in pieces of 7
    assert reader.bytes_read == 3 * 512


def test_requests_must_lie_within_the_memory(reader: FileReader) -> None:
    for request in ((0, 513, 512), (0, 10, 1536), (0, 10, -512), (-512, 10, 0)):
        with pytest.raises(ValueError, match="`requests` must lie within"):
            read(reader, private_bytes(3 * 512)[:1535], request)


# What the disk is asked for.


def resident(path: Path) -> list[int]:
    """Return the numbers of the file's pages that are in the page cache."""
    with path.open("rb") as stream:
        view = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    found = np.zeros(-(-len(view) // mmap.PAGESIZE), dtype=np.uint8)
    address = [ctypes.c_void_p(each.ctypes.data) for each in (view, found)]
    assert ctypes.CDLL(None).mincore(address[0], ctypes.c_size_t(len(view)), address[1]) == 0
    return np.flatnonzero(found & 1).tolist()


@pytest.fixture
def evicted(path: Path) -> Path:
    """A file whose bytes are on the disk only."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path):
        pytest.skip("the file system keeps files in memory")
    return path


def test_direct_reads_leave_the_page_cache_alone(evicted: Path) -> None:
    reader = FileReader(str(evicted))
    if reader.direct == reader.file:
        pytest.skip("the file system has no direct I/O")
    memory = private_bytes(3 * 4096)
    read(reader, memory, (16_384, 5000, 0), (98_304, 1696, 8192))  # to the end of the file
    assert memory[:5000].tolist() == content()[16_384:21_384].tolist()
    assert memory[8192:9888].tolist() == content()[98_304:].tolist()
    assert resident(evicted) == []


@pytest.mark.parametrize(("user", "writable"), [("owner", False), ("other", True)])
def test_the_page_cache_is_asked_about_files_that_one_owns_or_may_write(
    user: str, writable: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + (user == "other"))
    monkeypatch.setattr(os, "access", lambda *_, **__: writable)
    assert len(FileReader(str(path))._map) == SIZE


def test_a_file_of_another_user_is_read_by_direct_reads(
    evicted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux would say that all its pages are cached, so that whole pages were read."""
    monkeypatch.setattr(os, "geteuid", lambda: evicted.stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    reader = FileReader(str(evicted))
    if reader.direct == reader.file:
        pytest.skip("the file system has no direct I/O")
    assert len(reader._map) == 0
    memory = private_bytes(8192)
    read(reader, memory, (16_384, 5000, 0))
    assert memory[:5000].tolist() == content()[16_384:21_384].tolist()
    assert resident(evicted) == []


@pytest.mark.parametrize("how", ["wanted", "no direct I/O"])
def test_only_the_pages_of_a_request_are_read(how: str, evicted: Path) -> None:
    reader = open_(evicted, "pages" if how == "no direct I/O" else "cached")
    memory = private_bytes(2 * 8192)
    requests = np.array([[8192, 5000, 0], [53_248, 100, 8192]])
    reader.read(requests, memory, EXTENTS, how == "wanted")
    assert memory[:5000].tolist() == content()[8192:13_192].tolist()
    assert resident(evicted) == [2, 3, 13]


def test_cached_bytes_are_not_read_from_the_disk(path: Path, monkeypatch: Any) -> None:
    reader = FileReader(str(path))
    if len(resident(path)) < 25:
        pytest.skip("the file system does not cache files")
    # Direct reads would now fail, and be repeated in pieces.
    monkeypatch.setattr(reader, "direct", os.open(path.parent, os.O_RDONLY))
    monkeypatch.setattr(os, "preadv", None)
    memory = private_bytes(SIZE + 512)
    read(reader, memory, (0, 50_000, 0), (51_200, SIZE - 51_200, 51_200))
    assert memory[51_200:SIZE].tolist() == content()[51_200:].tolist()
    os.close(reader.direct)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("accepted", [*SECTORS, None])
def test_the_sector_of_the_file_is_found(
    accepted: int | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def strict(file: int, buffers: Any, offset: int) -> int:
        if accepted is None or len(buffers[0]) % accepted or offset % accepted:
            raise OSError(errno.EINVAL, "not aligned")
        return preadv(file, buffers, offset)

    gc.collect()
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", strict)
        reader = FileReader(str(path))
    assert reader.sector == (accepted or SECTORS[0])
    assert (reader.direct == reader.file) == (accepted is None)
    memory = private_bytes(8192)
    read(reader, memory, (4096, 100, 4096))
    assert memory[4096:4196].tolist() == content()[4096:4196].tolist()
    del reader
    gc.collect()
    assert descriptors() == before


def test_a_file_system_without_direct_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def refuse(name: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O")
        return open_file(name, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    reader = FileReader(str(path))
    assert (reader.direct, reader.sector) == (reader.file, SECTORS[0])


# Failing reads.


@pytest.mark.parametrize(
    ("offset", "size", "at", "missing", "sample"),
    [(59_904, 200, 60_000, 104, 60), (60_416, 10, 60_416, 10, 60), (70_656, 99, 70_656, 99, 70)],
    ids=["ends within", "ends before", "ends long before"],
)
def test_a_truncated_file_is_an_error_that_names_the_sample(
    offset: int, size: int, at: int, missing: int, sample: int,
    path: Path, reader: FileReader, both_ways: None,
) -> None:  # fmt: skip
    os.truncate(path, 60_000)
    memory = private_bytes(4096)
    found = rf"sample {sample} of '.*a\.beton' at byte {at}: the file is {missing} bytes too short"
    with pytest.raises(BetonError, match=rf"^cannot read {found}"):
        read(reader, memory, (0, 500, 0), (offset, size, 512))
    read(reader, memory, (0, 500, 0), (59_904, 96, 512))  # the remaining bytes are still read
    assert memory[:500].tolist() == content()[:500].tolist()
    assert memory[512:608].tolist() == content()[59_904:60_000].tolist()


def test_an_empty_file_and_huge_offsets_are_errors(path: Path, reader: FileReader) -> None:
    memory = private_bytes(512)
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
        read(reader, private_bytes(512), (4000, 10, 0))
    assert reader.bytes_read == 0
