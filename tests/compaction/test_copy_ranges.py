"""Copying byte ranges between files: the kernel's copies and ours give the same file."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_ffcv import BetonError
from dp4tl_ffcv.compaction import copy_ranges
from dp4tl_ffcv.compaction.source import SourceFile
from tests.compaction.support import sha256

MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 MiB of random bytes."""
    path = tmp_path_factory.mktemp("gather") / "source"
    path.write_bytes(np.random.default_rng(4).bytes(12 * MIB))
    return path


def copy(path: Path, target: Path, ranges: list[tuple[int, int, int]], num_threads: int = 2) -> str:
    columns: Any = tuple(np.array(ranges, dtype=np.int64).reshape(-1, 3).T)
    with target.open("w+b") as stream:
        file = SourceFile(path)
        copy_ranges.copy_ranges(file, stream.fileno(), columns, num_threads, "copy")
        file.close()
    return sha256(target.read_bytes())


def expected(path: Path, ranges: list[tuple[int, int, int]]) -> str:
    """Copy one range after the other."""
    data = path.read_bytes()
    end = max((place + size for _, place, size in ranges if size), default=0)
    whole = bytearray(end)
    for start, place, size in ranges:
        whole[place : place + size] = data[start : start + size]
    return sha256(whole)


def mixed(count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Ranges of 0 to 3 MiB, some following each other in both files, some with gaps."""
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
    tmp_path_factory: pytest.TempPathFactory, source: Path, seed: int, count: int, threads: int
) -> None:
    ranges = mixed(count, np.random.default_rng(seed))
    target = tmp_path_factory.getbasetemp() / "target"
    assert copy(source, target, ranges, threads) == expected(source, ranges)


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


NO_SUPPORT = [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM]


@pytest.mark.parametrize("answer", [*NO_SUPPORT, 0, errno.EIO])
@pytest.mark.parametrize("after", [0, 1])
def test_a_kernel_that_cannot_copy_is_asked_once(
    answer: int, after: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems copy 0 bytes instead of raising an error. Other errors are raised."""
    real, calls = os.copy_file_range, []

    def refuse(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) <= after:
            return real(arguments[0], arguments[1], 70_000, *arguments[3:])
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(os, "copy_file_range", refuse)
    ranges = [(5, 0, 3 * MIB), (1, 4 * MIB, 2 * MIB), (9, 9 * MIB, 3 * MIB + 1)]
    if answer == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(answer)):
            copy(source, tmp_path / "out", ranges, num_threads=1)
        return
    assert copy(source, tmp_path / "out", ranges, num_threads=1) == expected(source, ranges)
    if answer:
        assert len(calls) == after + 1


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
    with pytest.raises(BetonError, match=f"is truncated: it has no byte {first}"):
        copy(source, tmp_path / "out", [(0, 0, 5), (start, 100, size)])


def test_several_threads_copy_a_file_whose_order_is_kept(source: Path) -> None:
    sizes = np.full(120, 100_000)
    places = np.cumsum(sizes) - sizes
    starts, _, runs = copy_ranges._join(places, places, sizes)
    assert starts.tolist() == [0, 84 * 100_000]  # the first range of the next 8 MiB
    assert runs.sum() == sizes.sum()
