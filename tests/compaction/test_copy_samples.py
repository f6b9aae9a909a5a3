"""Copying byte ranges from one file to their places in another."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_ffcv import BetonError
from dp4tl_ffcv.compaction.copy_samples import copy_ranges
from dp4tl_ffcv.compaction.source import SourceFile
from tests.compaction.support import sha256

MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 MiB of random bytes."""
    path = tmp_path_factory.mktemp("copy") / "source"
    path.write_bytes(np.random.default_rng(4).bytes(12 * MIB))
    return path


def copy(path: Path, target: Path, ranges: list[tuple[int, int, int]], num_threads: int = 2) -> str:
    columns: Any = tuple(np.array(ranges, dtype=np.int64).reshape(-1, 3).T)
    with target.open("w+b") as stream:
        file = SourceFile(path)
        copy_ranges(file, stream.fileno(), columns, num_threads, "copy")
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


def test_short_reads_and_writes_are_continued(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: read(file, (parts[0][:4000],), at))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:30_001], at))
    ranges = mixed(30, np.random.default_rng(1))
    assert copy(source, tmp_path / "out", ranges) == expected(source, ranges)


@pytest.mark.parametrize(("start", "size"), [(12 * MIB - 1, 2), (12 * MIB, 3 * MIB), (20 * MIB, 2)])
def test_ranges_beyond_the_end_are_an_error(
    start: int, size: int, source: Path, tmp_path: Path
) -> None:
    first = max(start, 12 * MIB)
    with pytest.raises(BetonError, match=f"is truncated: it has no byte {first}"):
        copy(source, tmp_path / "out", [(0, 0, 5), (start, 100, size)])
