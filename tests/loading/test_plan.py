"""Plans of reads, compared with plain loops and carried out on a file in memory."""

import tracemalloc
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.loading.reading import plan as module
from dp4tl_ffcv.loading.reading.extents import RetainedExtents
from dp4tl_ffcv.loading.reading.plan import (
    ALIGNMENT,
    LARGEST_REQUEST,
    MERGED_GAP,
    EpochPlan,
    plan_epoch,
)

# Limits for files of a few thousand bytes.
SMALL_GAP, SMALL_REQUEST = 40, 150


def table_of(ptrs: Any, sizes: Any, owners: Any) -> RetainedExtents:
    """Return extents in the order of the file."""
    owners = np.asarray(owners, dtype=np.int64)
    samples = np.unique(owners)
    at = np.searchsorted(samples, owners)
    return RetainedExtents(
        np.asarray(ptrs, dtype=np.uint64),
        np.asarray(sizes, dtype=np.int64),
        owners,
        samples,
        np.argsort(at, kind="stable"),
        np.append(0, np.cumsum(np.bincount(at, minlength=len(samples)))),
    )


@st.composite
def epochs(draw: Any) -> tuple[RetainedExtents, NDArray[np.int64], int]:
    """Extents of some samples with any gaps, an order of the samples, and a window size."""
    count = draw(st.integers(1, 25))
    sizes = draw(st.lists(st.integers(0, 400), min_size=count, max_size=count))
    gap = st.one_of(st.just(0), st.integers(0, 2 * SMALL_GAP), st.integers(0, 500))
    gaps = draw(st.lists(gap, min_size=count, max_size=count))
    owners = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    ptrs = np.cumsum(gaps) + np.append(0, np.cumsum(sizes)[:-1])
    keep = np.append(ptrs[1:] != ptrs[:-1], True)  # no two extents at one place
    extents = table_of(ptrs[keep], np.array(sizes)[keep], np.array(owners)[keep])
    order = draw(st.lists(st.sampled_from(extents.samples.tolist()), max_size=40))
    return extents, np.array(order, dtype=np.int64), draw(st.integers(1, 12))


def wanted_rows(extents: RetainedExtents, ids: Any) -> list[int]:
    return [row for row in range(len(extents.ptrs)) if extents.owners[row] in set(ids)]


def windows_of(plan: EpochPlan) -> list[tuple[NDArray[np.int64], NDArray[np.int64], Any]]:
    """Return rows, places and requests of each window."""
    found = []
    for window in range(plan.num_windows):
        rows = slice(plan.row_starts[window], plan.row_starts[window + 1])
        requests = slice(plan.request_starts[window], plan.request_starts[window + 1])
        found.append((plan.rows[rows], plan.places[rows], plan.requests[requests]))
    return found


def runs_of(extents: RetainedExtents, rows: list[int], gap: int) -> list[tuple[int, int]]:
    """Return begin and end of each contiguous read, by a plain loop."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        begin = int(extents.ptrs[row])
        end = begin + int(extents.sizes[row])
        if runs and begin - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((begin, end))
    return runs


def check(plan: EpochPlan, extents: RetainedExtents, gap: int, largest: int) -> None:
    """Read with the plan from a file in memory, and compare everything with plain loops."""
    end = int((extents.ptrs.astype(np.int64) + extents.sizes).max(initial=0))
    file = np.random.default_rng(end).integers(0, 256, end, dtype=np.uint8)
    order, size = plan.order, plan.window_size
    assert plan.num_windows == -(-len(order) // size)
    assert (plan.row_starts[0], plan.row_starts[-1]) == (0, len(plan.rows))
    assert (plan.request_starts[0], plan.request_starts[-1]) == (0, len(plan.requests))
    total = 0
    for window, (rows, places, requests) in enumerate(windows_of(plan)):
        ids = order[window * size : (window + 1) * size].tolist()
        assert rows.tolist() == wanted_rows(extents, ids)  # each once, in the order of the file
        read, memory = np.zeros(end, np.uint8), np.zeros(plan.window_bytes[window], np.uint8)
        written = np.zeros_like(memory)
        for offset, count, place in requests.tolist():
            assert 0 < count <= largest
            assert offset + count <= end
            assert place + count <= len(memory)
            read[offset : offset + count] += 1
            written[place : place + count] += 1
            memory[place : place + count] = file[offset : offset + count]
        assert read.max(initial=0) <= 1
        assert written.max(initial=0) <= 1
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            begin, count = int(extents.ptrs[row]), int(extents.sizes[row])
            assert place >= 0
            np.testing.assert_array_equal(memory[place : place + count], file[begin:][:count])
        runs = [run for run in runs_of(extents, rows.tolist(), gap) if run[1] > run[0]]
        expected = np.zeros_like(read)
        for begin, stop in runs:
            expected[begin:stop] = 1
        np.testing.assert_array_equal(read, expected)
        assert len(requests) == sum(-(-(stop - begin) // largest) for begin, stop in runs)
        padded = [-(-(stop - begin) // ALIGNMENT) * ALIGNMENT for begin, stop in runs]
        assert plan.window_bytes[window] == sum(padded)
        total += int(read.sum())
    assert plan.read_bytes == total
    for windows in range(1, 5):
        most = int(plan.window_bytes.max(initial=0))
        assert plan.pool_bytes(windows) == min(windows, plan.num_windows) * most


@settings(derandomize=True, deadline=None, max_examples=300)
@given(epochs())
def test_every_extent_is_read_once_and_found_at_its_place(
    case: tuple[RetainedExtents, NDArray[np.int64], int],
) -> None:
    extents, order, window_size = case
    with mock.patch.multiple(module, MERGED_GAP=SMALL_GAP, LARGEST_REQUEST=SMALL_REQUEST):
        plan = plan_epoch(extents, order, window_size)
    assert plan.order is order
    assert plan.window_size == window_size
    check(plan, extents, SMALL_GAP, SMALL_REQUEST)


@pytest.mark.parametrize("window_size", [9, 40])
def test_large_gaps_and_requests_are_split(window_size: int) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 50_000, 30)
    sizes[[3, 20]] = 2 * LARGEST_REQUEST + 5, LARGEST_REQUEST
    gaps = rng.choice([0, 1, MERGED_GAP, MERGED_GAP + 1, 10 * MERGED_GAP], 30)
    ptrs = np.cumsum(gaps) + np.append(0, np.cumsum(sizes)[:-1])
    extents = table_of(ptrs, sizes, rng.permutation(30))
    plan = plan_epoch(extents, rng.permutation(30)[:27], window_size)
    check(plan, extents, MERGED_GAP, LARGEST_REQUEST)


@pytest.mark.parametrize("fields", [True, False], ids=["no samples", "no extents"])
def test_an_epoch_without_reads_is_planned(fields: bool) -> None:
    extents = table_of([0], [10], [0]) if fields else table_of([], [], [])
    if not fields:
        extents = RetainedExtents(
            extents.ptrs, extents.sizes, extents.owners, np.arange(5), extents.rows,
            np.zeros(6, dtype=np.int64),
        )  # fmt: skip
    plan = plan_epoch(extents, np.arange(0 if fields else 5), 2)
    assert plan.num_windows == (0 if fields else 3)
    assert (plan.read_bytes, plan.pool_bytes(3), len(plan.rows)) == (0, 0, 0)
    check(plan, extents, MERGED_GAP, LARGEST_REQUEST)


def imagenet(num_samples: int, keep: float) -> tuple[RetainedExtents, NDArray[np.int64]]:
    """Return extents of photographs of 110 KB on average, and the ids of a retained fraction."""
    rng = np.random.default_rng(5)
    sizes = np.clip(rng.lognormal(11.5, 0.45, num_samples), 5_000, 10**6).astype(np.int64)
    ptrs = np.cumsum(sizes) - sizes
    retained = np.sort(rng.choice(num_samples, round(keep * num_samples), replace=False))
    return table_of(ptrs[retained], sizes[retained], retained), retained


@pytest.mark.parametrize("window_size", [256, 1024, 4096])
@pytest.mark.parametrize("order", ["random", "sequential"])
def test_read_amplification_is_at_most_three_percent(order: str, window_size: int) -> None:
    extents, ids = imagenet(50_000, keep=0.2)
    assert 100_000 < extents.sizes.mean() < 120_000
    if order == "random":
        ids = np.random.default_rng(6).permutation(ids)
    plan = plan_epoch(extents, ids, window_size)
    assert extents.num_bytes <= plan.read_bytes <= 1.03 * extents.num_bytes
    assert plan.pool_bytes(3) <= 3 * window_size * 1.2 * extents.sizes.mean()


def test_memory_grows_with_the_samples_of_the_epoch() -> None:
    def peak(num_samples: int, length: int) -> int:
        extents, ids = imagenet(num_samples, keep=1.0)
        order = np.random.default_rng(8).permutation(ids)[:length]
        tracemalloc.start()
        plan = plan_epoch(extents, order, 256)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        arrays = (getattr(plan, name) for name in EpochPlan.__slots__)
        entries = sum(np.size(array) for array in arrays)
        assert entries <= 10 * length
        return most

    # Neither other samples of the file nor retained samples that the epoch omits add to it.
    assert peak(5_000, 2_000) <= 400 * 2_000
    assert peak(50_000, 2_000) <= 400 * 2_000
    assert peak(50_000, 40_000) <= 400 * 40_000
