"""Copying byte ranges between files: every way that the bytes can take gives the same file."""

import errno
import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError
from dp4tl_ffcv.compaction import copy_ranges
from dp4tl_ffcv.compaction.copy_ranges import SourceFile, copy_extents, naming_target

MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 MiB of random bytes."""
    path = tmp_path_factory.mktemp("gather") / "source"
    path.write_bytes(np.random.default_rng(4).bytes(12 * MIB))
    return path


def sha256(data: bytes | bytearray) -> str:
    """What to compare instead of megabytes, whose differences pytest would take minutes to show."""
    return hashlib.sha256(data).hexdigest()


def copy(path: Path, target: Path, ranges: list[tuple[int, int, int]], jobs: int = 2) -> str:
    starts, places, sizes = np.array(ranges, dtype=np.int64).reshape(-1, 3).T
    with target.open("w+b") as stream:
        file = SourceFile(path)
        copy_extents(file, stream.fileno(), starts, places, sizes, jobs=jobs, description="copy")
        file.close()
    return sha256(target.read_bytes())


def expected(path: Path, ranges: list[tuple[int, int, int]]) -> str:
    """The same with one range after the other."""
    data = path.read_bytes()
    end = max((place + size for _, place, size in ranges if size), default=0)
    whole = bytearray(end)
    for start, place, size in ranges:
        whole[place : place + size] = data[start : start + size]
    return sha256(whole)


def mixed(count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Ranges of 0 to 3 MiB, some behind each other in both files, some with gaps between."""
    ranges, place, start = [], int(rng.integers(0, 3 * MIB)), 0
    for _ in range(count):
        size = int(rng.choice([0, 1, 17, 5000, 200_000, MIB - 1, MIB, 3 * MIB]))
        if rng.random() < 0.6 or start + size > 12 * MIB:
            start = int(rng.integers(0, 12 * MIB - size + 1))
        ranges.append((start, place, size))
        start += size
        place += size + int(rng.choice([0, 0, 1, 900_000]))
    return ranges


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_all_bytes_arrive_and_gaps_are_zero(
    tmp_path_factory: pytest.TempPathFactory, source: Path, seed: int, count: int, jobs: int
) -> None:
    ranges = mixed(count, np.random.default_rng(seed))
    target = tmp_path_factory.getbasetemp() / "target"
    assert copy(source, target, ranges, jobs) == expected(source, ranges)


def test_long_ranges_are_copied_by_the_kernel_and_short_ones_written_together(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[int]] = {"copy_file_range": [], "pwrite": []}
    for name in calls:
        real = getattr(os, name)

        def count(*arguments: Any, name: str = name, real: Any = real) -> int:
            done: int = real(*arguments)
            calls[name].append(done)
            return done

        monkeypatch.setattr(os, name, count)
    short = [(10_000 * (n * 7 % 100), 1000 * n, 1000) for n in range(400)]
    long = [(0, 400_000, MIB), (MIB, 400_000 + MIB, MIB), (MIB, 400_000 + 2 * MIB, 500)]
    assert copy(source, tmp_path / "out", short + long) == expected(source, short + long)
    assert sum(calls["copy_file_range"]) == 2 * MIB
    assert len(calls["copy_file_range"]) == 1
    assert sorted(calls["pwrite"]) == [500, 400_000]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
@pytest.mark.parametrize("after", [0, 1])
def test_a_kernel_that_cannot_copy_is_asked_once(
    number: int, after: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.copy_file_range, []

    def refuse(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return real(arguments[0], arguments[1], 70_000, *arguments[3:])

    monkeypatch.setattr(os, "copy_file_range", refuse)
    ranges = [(5, 0, 3 * MIB), (1, 4 * MIB, 2 * MIB), (9, 9 * MIB, 3 * MIB + 1)]
    assert copy(source, tmp_path / "out", ranges, jobs=1) == expected(source, ranges)
    assert len(calls) == after + 1


def test_other_errors_of_the_kernel_are_raised(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        copy(source, tmp_path / "out", [(0, 0, 2 * MIB)])


def test_a_kernel_that_copies_nothing_does_not_hang(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems answer so instead of with an error."""
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    ranges = [(3, 2, 2 * MIB)]
    assert copy(source, tmp_path / "out", ranges) == expected(source, ranges)


def test_short_reads_and_writes_are_continued(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write, real = os.preadv, os.pwrite, os.copy_file_range
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: read(file, (parts[0][:4000],), at))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:30_001], at))
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, *at: real(a, b, min(n, 99_999), *at))
    ranges = mixed(30, np.random.default_rng(1))
    assert copy(source, tmp_path / "out", ranges) == expected(source, ranges)


@pytest.mark.parametrize("start", [12 * MIB - 1, 12 * MIB, 20 * MIB])
@pytest.mark.parametrize("size", [2, 3 * MIB])
def test_ranges_beyond_the_end_are_an_error(
    start: int, size: int, source: Path, tmp_path: Path
) -> None:
    first = max(start, 12 * MIB)
    with pytest.raises(BetonError, match=f"`source` must stay whole .* has no byte {first}"):
        copy(source, tmp_path / "out", [(0, 0, 5), (start, 100, size)])


def test_reading_takes_the_memory_of_the_bytes_once(source: Path) -> None:
    file = SourceFile(source)
    tracemalloc.start()
    try:
        data = file.read(MIB, 8 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 9 * MIB
    finally:
        tracemalloc.stop()
        file.close()
    assert sha256(data) == sha256(source.read_bytes()[MIB : 9 * MIB])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_error_that_says_that_a_disk_is_full_names_the_target(number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught, naming_target(Path("a")):
        raise OSError(number, os.strerror(number))
    assert (caught.value.errno, caught.value.filename) == (number, "a")


def test_other_errors_keep_their_file() -> None:
    for error in (OSError(errno.EIO, "gone"), OSError(errno.ENOSPC, "full", "b")):
        with pytest.raises(OSError, match=r"gone|full") as caught, naming_target(Path("a")):
            raise error
        assert caught.value is error


def test_an_error_in_one_thread_stops_the_others(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tasks = copy_ranges._Copier.run, []

    def fail(self: Any, task: int) -> None:
        tasks.append(task)
        if task == 1:
            raise OSError("gone")
        run(self, task)

    monkeypatch.setattr(copy_ranges._Copier, "run", fail)
    ranges = [(0, number * 8 * MIB, 100) for number in range(200)]
    with pytest.raises(OSError, match="gone"):
        copy(source, tmp_path / "out", ranges)
    assert len(tasks) < 20


def test_a_file_of_one_piece_is_shared_among_threads(source: Path) -> None:
    sizes: NDArray[np.int64] = np.full(120, 100_000)
    places = np.cumsum(sizes) - sizes
    starts, _, runs = copy_ranges._join(places, places, sizes)
    assert starts.tolist() == [0, 84 * 100_000]  # the first range of the next 8 MiB
    assert runs.sum() == sizes.sum()
