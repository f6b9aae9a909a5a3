"""Each cache gives compiled code the bytes of the file, from bounded memory."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, PrunedLoader
from dp4tl_ffcv.loading import caches
from dp4tl_ffcv.loading.caches import CACHES, available_memory, choose_cache, open_cache
from dp4tl_ffcv.loading.caches.base import BaseCache as Cache
from dp4tl_ffcv.loading.decoding.workspace import Workspace
from dp4tl_ffcv.loading.ffcv_adapter.compilation import shared_compilation
from dp4tl_ffcv.loading.ffcv_adapter.memory import EpochMemory, RetainedMemory
from dp4tl_ffcv.loading.reading.extents import RetainedExtents, retained_extents
from dp4tl_ffcv.loading.reading.file_reader import FileReader
from dp4tl_ffcv.loading.reading.plan import ALIGNMENT, plan_epoch
from tests.loading.test_extents import NUM_SAMPLES, POINTING, write

RETAINED = np.arange(0, 120, 2)
BATCH = 7


def open_(
    name: str, path: Path, ids: NDArray[np.int64] = RETAINED, read_ahead: int = 2, **options: Any
) -> Cache:
    index = BetonIndex.open(path)
    extents = retained_extents(index, np.unique(ids), {"image"})
    options = {"shared_as": None, **options}
    return open_cache(name, FileReader(str(path)), extents, read_ahead=read_ahead, **options)


def batches_of(order: Any) -> list[NDArray[np.int64]]:
    return [np.asarray(order[at : at + BATCH]) for at in range(0, len(order), BATCH)]


def shuffled(seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(RETAINED)


class Epochs:
    """Reads epochs of a cache through a memory manager, as a loader does."""

    def __init__(self, cache: Cache, windows: int = 1) -> None:
        self.cache = cache
        index = BetonIndex.open(cache.reader.path)
        self.manager = RetainedMemory(index, cache, 0, lambda: Workspace(1, 0))
        self.manager.window_size = windows * BATCH
        with shared_compilation():
            self.read = self.manager.compile_reader()

    def context(self, order: Any) -> EpochMemory:
        return self.manager.schedule_epoch(batches_of(order))

    def sample(self, number: int, context: EpochMemory) -> bytes:
        row = int(np.flatnonzero(self.cache.extents.owners == number)[0])
        found = self.read(self.cache.extents.ptrs[row], context.state)
        return bytes(found)

    def plan(self, order: Any) -> Any:
        return plan_epoch(self.cache.extents, np.asarray(order), self.manager.window_size)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dp4tl")]


@pytest.fixture
def stored(paged: Any) -> Callable[[int], bytes]:
    """A function from a sample's number to its bytes in the file."""
    return lambda number: paged.images[number].tobytes()


@pytest.mark.parametrize(
    ("name", "read_ahead", "windows"),
    [("extents", 1, 1), ("extents", 4, 1), ("extents", 1, 3), ("ram", 1, 1), ("os", 1, 1)],
)
def test_compiled_code_gets_the_bytes_of_the_file(
    name: str, read_ahead: int, windows: int, paged: Any, stored: Callable[[int], bytes]
) -> None:
    epochs = Epochs(open_(name, paged.path, read_ahead=read_ahead), windows)
    for order in (shuffled(1), RETAINED, shuffled(2)[:5], np.repeat(shuffled(3), 2)):
        with epochs.context(order) as context:
            assert not context.state[0].flags.writeable
            for batch, ids in enumerate(batches_of(order)):
                context.start_batch(batch)
                for number in ids.tolist():
                    assert epochs.sample(number, context) == stored(number)


@pytest.mark.parametrize("name", CACHES)
def test_compiled_code_gets_the_bytes_of_every_field(name: str, tmp_path: Path) -> None:
    path = write("ffcv's", tmp_path / "a.beton")
    index, ids = BetonIndex.open(path), np.arange(1, NUM_SAMPLES, 3)
    extents = retained_extents(index, ids, set(POINTING))
    cache = open_cache(name, FileReader(str(path)), extents, read_ahead=1, shared_as=None)
    epochs, data = Epochs(cache), path.read_bytes()
    with epochs.context(ids) as context:
        for batch, numbers in enumerate(batches_of(ids)):
            context.start_batch(batch)
            for row in np.flatnonzero(np.isin(extents.owners, numbers)):
                ptr, size = int(extents.ptrs[row]), int(extents.sizes[row])
                assert bytes(epochs.read(extents.ptrs[row], context.state)) == data[ptr:][:size]


@pytest.mark.parametrize("name", CACHES)
def test_there_are_no_bytes_at_other_addresses(name: str, paged: Any) -> None:
    epochs = Epochs(open_(name, paged.path))
    ptrs = epochs.cache.extents.ptrs
    pruned = paged.index.extents([1, 119])["ptr"]
    with epochs.context(RETAINED) as context:
        context.start_batch(0)
        for address in (0, ptrs[0] - 1, ptrs[0] + 1, ptrs[-1] + 1, 2**60, 2**64 - 1, *pruned):
            assert len(epochs.read(np.uint64(address), context.state)) == 0


@pytest.mark.parametrize("name", CACHES)
def test_a_field_without_bytes_needs_no_memory_and_no_reads(name: str, paged: Any) -> None:
    extents = retained_extents(paged.index, RETAINED, {"label"})
    cache = open_cache(name, FileReader(str(paged.path)), extents, read_ahead=2, shared_as=None)
    epochs = Epochs(cache)
    with epochs.context(shuffled()) as context:
        for batch in range(9):
            context.start_batch(batch)
            assert len(epochs.read(np.uint64(1 << 21), context.state)) == 0
    assert cache.reader.bytes_read == cache.num_bytes(epochs.plan(shuffled())) == 0


# The pool of "extents".


@pytest.mark.parametrize("windows", [1, 3])
def test_only_samples_of_the_current_window_have_bytes(
    windows: int, paged: Any, stored: Callable[[int], bytes]
) -> None:
    epochs = Epochs(open_("extents", paged.path), windows)
    order = shuffled(5)
    with epochs.context(order) as context:
        assert all(epochs.sample(number, context) == b"" for number in RETAINED.tolist())
        for batch in range(9):
            context.start_batch(batch)
            start = batch // windows * windows * BATCH
            window = set(order[start : start + windows * BATCH].tolist())
            for number in RETAINED.tolist():
                expected = stored(number) if number in window else b""
                assert epochs.sample(number, context) == expected


@pytest.mark.parametrize("read_ahead", [1, 2, 3, 20])
def test_read_ahead_windows_are_read_and_never_over_the_batch_in_use(
    read_ahead: int, paged: Any, stored: Callable[[int], bytes]
) -> None:
    cache = open_("extents", paged.path, read_ahead=read_ahead)
    epochs, order = Epochs(cache), shuffled(6)
    plan = epochs.plan(order)
    sizes = [
        plan.requests[plan.request_starts[at] : plan.request_starts[at + 1], 1].sum()
        for at in range(plan.num_windows)
    ]
    with epochs.context(order) as context:
        assert context.state[0].nbytes == cache.num_bytes(plan)
        assert cache.num_bytes(plan) <= (read_ahead + 1) * BATCH * 160 * 160 * 3
        for batch, ids in enumerate(batches_of(order)):
            context.start_batch(batch)
            expected = sum(sizes[: batch + read_ahead + 1])
            until = time.monotonic() + 60
            while cache.reader.bytes_read < expected:
                assert time.monotonic() < until
                time.sleep(0.001)
            assert cache.reader.bytes_read == expected
            assert all(epochs.sample(number, context) == stored(number) for number in ids.tolist())
    assert cache.reader.bytes_read == plan.read_bytes


def address_of(context: EpochMemory) -> int:
    return int(context.state[0].ctypes.data)


def test_a_pool_is_reused_if_it_is_large_enough(paged: Any, stored: Callable[[int], bytes]) -> None:
    cache = open_("extents", paged.path)
    epochs = Epochs(cache)
    addresses = []
    for order in (shuffled(1)[:3], shuffled(2), shuffled(3)[:3], shuffled(4)):
        with epochs.context(order) as context:
            addresses.append(address_of(context))
            assert context.state[0].nbytes >= cache.num_bytes(epochs.plan(order))
            for batch, ids in enumerate(batches_of(order)):
                context.start_batch(batch)
                assert epochs.sample(int(ids[-1]), context) == stored(int(ids[-1]))
    assert len(set(addresses[1:])) == 1


@pytest.mark.parametrize("name", CACHES)
def test_two_epochs_run_at_once(name: str, paged: Any, stored: Callable[[int], bytes]) -> None:
    epochs: Any = Epochs(open_(name, paged.path))
    orders = shuffled(1), shuffled(2)
    with epochs.context(orders[0]) as one, epochs.context(orders[1]) as other:
        if name == "extents":
            assert address_of(one) != address_of(other)
        for batch in range(9):
            for order, context in zip(orders, (one, other), strict=True):
                context.start_batch(batch)
                for number in batches_of(order)[batch].tolist():
                    assert epochs.sample(number, context) == stored(number)
    if name == "extents":  # keeps one pool
        plan = epochs.plan(shuffled())
        assert sum(pool.nbytes for pool in epochs.cache.spare) <= epochs.cache.num_bytes(plan)


def test_ram_reads_everything_once(paged: Any) -> None:
    cache = open_("ram", paged.path)
    epochs = Epochs(cache)
    extents = cache.extents
    assert cache.reader.bytes_read == 0
    plan = epochs.plan(shuffled())
    for seed in range(3):
        with epochs.context(shuffled(seed)) as context:
            assert cache.reader.bytes_read == extents.num_bytes
            assert context.state[0].nbytes == cache.num_bytes(plan)
    assert extents.num_bytes <= cache.num_bytes(plan)
    assert cache.num_bytes(plan) <= extents.num_bytes + ALIGNMENT * len(extents.ptrs)


def test_empty_bytes_have_no_address(tmp_path: Path) -> None:
    """ffcv's writer gives empty bytes the address of the next value, which must not be read."""
    index = BetonIndex.open(write("ffcv's", tmp_path / "a.beton"))
    column = index.column("blob")
    empty = column["size"] == 0
    assert np.isin(column["ptr"][empty], index.allocations["ptr"]).any()
    loader = PrunedLoader(index, 5, pipelines=dict.fromkeys(POINTING))
    np.testing.assert_array_equal(loader.reader.alloc_table, index.allocations)
    ours = loader.reader.metadata[index.field("blob").column]
    np.testing.assert_array_equal(ours["ptr"], np.where(empty, 0, column["ptr"]))
    np.testing.assert_array_equal(ours["size"], column["size"])


# The choice of "auto".


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the machine has this memory, with `limits` in the files of the cgroup."""

    def pretend(physical: int, available: int, **limits: str) -> None:
        files = {"/proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {available >> 10} kB\n"}
        if "v2" in limits:
            files["/sys/fs/cgroup/memory.max"] = limits["v2"] + "\n"
        if "v1" in limits:
            files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = limits["v1"] + "\n"

        def open_file(path: str) -> Any:
            if path not in files:
                raise FileNotFoundError(path)
            return io.StringIO(files[path])

        values = {"SC_PHYS_PAGES": physical >> 12, "SC_PAGE_SIZE": 1 << 12}
        monkeypatch.setattr(caches, "open", open_file, raising=False)
        monkeypatch.setattr(caches, "sysconf", values.__getitem__)

    return pretend


@pytest.mark.parametrize(
    ("physical", "available", "limits", "expected"),
    [
        (64 << 30, 40 << 30, {}, 40 << 30),
        (30 << 30, 40 << 30, {}, 30 << 30),
        (64 << 30, 40 << 30, {"v2": "max"}, 40 << 30),
        (64 << 30, 40 << 30, {"v2": str(8 << 30)}, 8 << 30),
        (64 << 30, 40 << 30, {"v2": str(60 << 30)}, 40 << 30),
        (64 << 30, 40 << 30, {"v1": str(3 << 30)}, 3 << 30),
        (64 << 30, 40 << 30, {"v1": "9223372036854771712"}, 40 << 30),
        (64 << 30, 40 << 30, {"v1": str(3 << 30), "v2": str(2 << 30)}, 2 << 30),
        (64 << 30, 40 << 30, {"v2": ""}, 40 << 30),
    ],
)
def test_auto_is_os_for_bytes_that_fit_into_half_of_the_memory_of_machine_and_container(
    physical: int, available: int, limits: dict[str, str], expected: int,
    machine: Callable[..., None],
) -> None:  # fmt: skip
    machine(physical, available, **limits)
    assert available_memory() == expected
    one = np.zeros(1, dtype=np.int64)
    for num_bytes, cache in ((0, "os"), (expected // 2, "os"), (expected // 2 + 1, "extents")):
        sizes = np.array([num_bytes])
        extents = RetainedExtents(one.astype(np.uint64), sizes, one, one, one, np.array([0, 1]))
        assert choose_cache(extents) == cache
