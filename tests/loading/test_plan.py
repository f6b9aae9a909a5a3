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
from dp4tl_ffcv.loading.reading.plan import LARGEST_REQUEST, EpochPlan, plan_epoch

SECTOR = 512
# Limit for files of a few thousand bytes, and the sectors that divide it.
SMALL_REQUEST = 192
SMALL_SECTORS = (1, 8, 64)


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
def tables(draw: Any) -> RetainedExtents:
    """Extents of some samples with any gaps."""
    count = draw(st.integers(1, 25))
    sizes = draw(st.lists(st.integers(1, 400), min_size=count, max_size=count))
    gap = st.one_of(st.just(0), st.integers(0, 80), st.integers(0, 500))
    gaps = draw(st.lists(gap, min_size=count, max_size=count))
    owners = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    return table_of(np.cumsum(gaps) + np.append(0, np.cumsum(sizes)[:-1]), sizes, owners)


@st.composite
def epochs(draw: Any) -> tuple[RetainedExtents, NDArray[np.int64], int, int]:
    """Extents, an order of the samples, a window size and a sector."""
    extents = draw(tables())
    order = draw(st.lists(st.sampled_from(extents.samples.tolist()), max_size=40))
    window_size, sector = draw(st.integers(1, 12)), draw(st.sampled_from(SMALL_SECTORS))
    return extents, np.array(order, dtype=np.int64), window_size, sector


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


def sectors_of(extents: RetainedExtents, rows: list[int], sector: int) -> list[int]:
    """Return the numbers of the sectors that hold byte ranges, by a plain loop."""
    found: set[int] = set()
    for row in rows:
        begin = int(extents.ptrs[row])
        found.update(range(begin // sector, -(-(begin + int(extents.sizes[row])) // sector)))
    return sorted(found)


def file_of(extents: RetainedExtents) -> NDArray[np.uint8]:
    """Return random content of a file that ends with the last byte range."""
    end = int((extents.ptrs.astype(np.int64) + extents.sizes).max(initial=0))
    return np.random.default_rng(end).integers(0, 256, end, dtype=np.uint8)


def carry_out(
    requests: Any, file: NDArray[np.uint8], memory: NDArray[np.uint8], sector: int, largest: int
) -> list[int]:
    """Read whole sectors as direct I/O does; return their numbers."""
    read = []
    for offset, count, place in requests.tolist():
        assert 0 < count <= largest
        assert offset % sector == place % sector == 0
        assert offset + count <= len(file)
        end = -(-count // sector) * sector
        assert place + end <= len(memory)
        found = file[offset : offset + end]
        memory[place : place + len(found)] = found
        read += range(offset // sector, (offset + end) // sector)
    return read


def check_places(
    extents: RetainedExtents, rows: Any, places: Any, memory: Any, file: NDArray[np.uint8]
) -> None:
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        begin, count = int(extents.ptrs[row]), int(extents.sizes[row])
        assert place >= 0
        np.testing.assert_array_equal(memory[place : place + count], file[begin : begin + count])


def check(plan: EpochPlan, extents: RetainedExtents, largest: int) -> None:
    """Read with the plan from a file in memory, and compare everything with plain loops."""
    file, order, size, sector = file_of(extents), plan.order, plan.window_size, plan.sector
    assert plan.num_windows == -(-len(order) // size)
    assert (plan.row_starts[0], plan.row_starts[-1]) == (0, len(plan.rows))
    assert (plan.request_starts[0], plan.request_starts[-1]) == (0, len(plan.requests))
    total = 0
    for window, (rows, places, requests) in enumerate(windows_of(plan)):
        ids = order[window * size : (window + 1) * size].tolist()
        assert rows.tolist() == wanted_rows(extents, ids)  # each once, in the order of the file
        memory = np.zeros(plan.window_bytes[window], np.uint8)
        sectors = sectors_of(extents, rows.tolist(), sector)
        assert carry_out(requests, file, memory, sector, largest) == sectors  # each once
        check_places(extents, rows, places, memory, file)
        assert len(memory) == len(sectors) * sector
        runs = np.split(sectors, np.flatnonzero(np.diff(sectors) > 1) + 1) if sectors else []
        assert len(requests) == sum(-(-len(run) * sector // largest) for run in runs)
        total += len(memory)
    assert plan.read_bytes == total
    for windows in range(1, 5):
        most = int(plan.window_bytes.max(initial=0))
        assert plan.pool_bytes(windows) == min(windows, plan.num_windows) * most


@settings(derandomize=True, deadline=None, max_examples=300)
@given(epochs())
def test_every_extent_is_read_once_and_found_at_its_place(
    case: tuple[RetainedExtents, NDArray[np.int64], int, int],
) -> None:
    extents, order, window_size, sector = case
    with mock.patch.object(module, "LARGEST_REQUEST", SMALL_REQUEST):
        plan = plan_epoch(extents, order, window_size, sector)
    assert plan.order is order
    assert (plan.window_size, plan.sector) == (window_size, sector)
    check(plan, extents, SMALL_REQUEST)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(epochs(), st.data())
def test_windows_fill_a_memory_for_all_of_them(
    case: tuple[RetainedExtents, NDArray[np.int64], int, int], data: st.DataObject
) -> None:
    extents, order, window_size, sector = case
    whole = plan_epoch(extents, extents.samples, len(extents.samples), sector)
    memory, file = np.zeros(whole.window_bytes.sum(), dtype=np.uint8), file_of(extents)
    count = len(extents.ptrs)
    is_wanted = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    with mock.patch.object(module, "LARGEST_REQUEST", SMALL_REQUEST):
        plan = plan_epoch(
            extents, order, window_size, sector, is_wanted=is_wanted, places=whole.places
        )
    for window, (rows, places, requests) in enumerate(windows_of(plan)):
        ids = order[window * window_size : (window + 1) * window_size].tolist()
        assert rows.tolist() == [row for row in wanted_rows(extents, ids) if is_wanted[row]]
        read = carry_out(requests, file, memory, sector, SMALL_REQUEST)
        assert read == sectors_of(extents, rows.tolist(), sector)
        np.testing.assert_array_equal(places, whole.places[rows])
    # No window has overwritten the bytes of another one.
    check_places(extents, plan.rows, plan.places, memory, file)


@pytest.mark.parametrize("window_size", [9, 40])
def test_large_requests_are_split(window_size: int) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 50_000, 30)
    sizes[[3, 20]] = 2 * LARGEST_REQUEST + 5, LARGEST_REQUEST
    gaps = rng.choice([0, 1, SECTOR, SECTOR + 1, 100_000], 30)
    ptrs = np.cumsum(gaps) + np.append(0, np.cumsum(sizes)[:-1])
    extents = table_of(ptrs, sizes, rng.permutation(30))
    plan = plan_epoch(extents, rng.permutation(30)[:27], window_size, SECTOR)
    check(plan, extents, LARGEST_REQUEST)


def test_extents_that_overlap_are_read_once() -> None:
    """A damaged table may say so: one byte range within another one."""
    extents = table_of([0, 10, 5000, 5100], [9000, 20, 50, 6000], [0, 1, 2, 3])
    check(plan_epoch(extents, np.arange(4), 4, SECTOR), extents, LARGEST_REQUEST)


@pytest.mark.parametrize("fields", [True, False], ids=["no samples", "no extents"])
def test_an_epoch_without_reads_is_planned(fields: bool) -> None:
    extents = table_of([0], [10], [0]) if fields else table_of([], [], [])
    if not fields:
        extents = RetainedExtents(
            extents.ptrs, extents.sizes, extents.owners, np.arange(5), extents.rows,
            np.zeros(6, dtype=np.int64),
        )  # fmt: skip
    plan = plan_epoch(extents, np.arange(0 if fields else 5), 2, SECTOR)
    assert plan.num_windows == (0 if fields else 3)
    assert (plan.read_bytes, plan.pool_bytes(3), len(plan.rows)) == (0, 0, 0)
    check(plan, extents, LARGEST_REQUEST)


def imagenet(num_samples: int, keep: float) -> tuple[RetainedExtents, NDArray[np.int64]]:
    """Return extents of photographs of 110 KB on average, and the ids of a retained fraction."""
    rng = np.random.default_rng(5)
    sizes = np.clip(rng.lognormal(11.5, 0.45, num_samples), 5_000, 10**6).astype(np.int64)
    ptrs = np.cumsum(sizes) - sizes
    retained = np.sort(rng.choice(num_samples, round(keep * num_samples), replace=False))
    return table_of(ptrs[retained], sizes[retained], retained), retained


@pytest.mark.parametrize("window_size", [256, 1024, 4096])
@pytest.mark.parametrize("order", ["random", "sequential"])
def test_reads_add_at_most_half_a_percent_to_photographs(order: str, window_size: int) -> None:
    extents, ids = imagenet(50_000, keep=0.2)
    assert 100_000 < extents.sizes.mean() < 120_000
    if order == "random":
        ids = np.random.default_rng(6).permutation(ids)
    plan = plan_epoch(extents, ids, window_size, SECTOR)
    assert extents.num_bytes <= plan.read_bytes <= 1.005 * extents.num_bytes
    assert plan.pool_bytes(3) <= 3 * window_size * 1.2 * extents.sizes.mean()


def test_memory_grows_with_the_samples_of_the_epoch() -> None:
    def peak(num_samples: int, length: int) -> int:
        extents, ids = imagenet(num_samples, keep=1.0)
        order = np.random.default_rng(8).permutation(ids)[:length]
        tracemalloc.start()
        plan = plan_epoch(extents, order, 256, SECTOR)
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
