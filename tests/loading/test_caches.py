"""Each cache gives compiled code the bytes of the file, from bounded memory."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, PrunedLoader
from dp4tl_ffcv.loading import caches
from dp4tl_ffcv.loading.caches import CACHES, agree_on_machine, choose_cache, open_cache, ram
from dp4tl_ffcv.loading.caches import extents as extents_cache
from dp4tl_ffcv.loading.caches.base import BaseCache as Cache
from dp4tl_ffcv.loading.caches.extents import page_cache_helps
from dp4tl_ffcv.loading.ffcv_adapter.compilation import shared_compilation
from dp4tl_ffcv.loading.ffcv_adapter.memory import EpochMemory, RetainedMemory
from dp4tl_ffcv.loading.reading.extents import RetainedExtents, retained_extents
from dp4tl_ffcv.loading.reading.file_reader import FileReader
from dp4tl_ffcv.loading.reading.plan import plan_epoch
from tests.loading.test_extents import NUM_SAMPLES, POINTING, write

ROOT = Path(__file__).resolve().parents[2]
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
        self.manager = RetainedMemory(index, cache, 0, list, 1, jpeg_index=False)
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
        sector = self.cache.reader.sector
        return plan_epoch(self.cache.extents, np.asarray(order), self.manager.window_size, sector)


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
    [("extents", 1, 1), ("extents", 4, 1), ("extents", 1, 3), ("ram", 1, 1), ("ram", 2, 3)],
)
def test_compiled_code_gets_the_bytes_of_the_file(
    name: str,
    read_ahead: int,
    windows: int,
    paged: Any,
    stored: Callable[[int], bytes],
    window_by_window: None,
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


# The memory of "ram".


def reading_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("dp4tl-read")]


@pytest.fixture
def window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as if the retained bytes were many."""
    monkeypatch.setattr(ram, "AT_ONCE", 0)


def test_ram_reads_few_bytes_at_once(paged: Any, stored: Callable[[int], bytes]) -> None:
    epochs = Epochs(open_("ram", paged.path))
    with epochs.context(shuffled(1)) as context:
        context.start_batch(0)
        assert all(epochs.sample(number, context) == stored(number) for number in RETAINED)
    assert epochs.cache.reader.bytes_read == epochs.cache.extents.num_bytes
    with epochs.context(shuffled(2)):
        assert not reading_threads()


def test_ram_reads_what_is_not_there_yet(
    paged: Any, stored: Callable[[int], bytes], window_by_window: None
) -> None:
    cache = open_("ram", paged.path)
    epochs, read = Epochs(cache), 0
    for order, is_reading in ((shuffled(1)[:30], True), (shuffled(2), True), (shuffled(3), False)):
        with epochs.context(order) as context:
            assert bool(reading_threads()) == is_reading
            for batch, ids in enumerate(batches_of(order)):
                context.start_batch(batch)
                assert all(epochs.sample(number, context) == stored(number) for number in ids)
        new = epochs.plan(order).read_bytes if len(order) == 30 else cache.extents.num_bytes
        read = max(read, new)
        assert cache.reader.bytes_read == read
    # Images of whole sectors, and a flag for each.
    assert cache.num_bytes(epochs.plan(RETAINED)) == cache.extents.num_bytes + len(RETAINED)


def test_ram_keeps_what_a_part_of_an_epoch_has_read(
    paged: Any, stored: Callable[[int], bytes], window_by_window: None
) -> None:
    epochs = Epochs(open_("ram", paged.path, read_ahead=1))
    order = shuffled(1)
    seen, rest = order[: 3 * BATCH].tolist(), order[3 * BATCH :].tolist()
    with epochs.context(order) as context:
        for batch in range(3):
            context.start_batch(batch)
        assert all(epochs.sample(number, context) == stored(number) for number in seen)
        assert all(epochs.sample(number, context) == b"" for number in rest)
    with epochs.context(order) as context:  # before it has read anything
        assert all(epochs.sample(number, context) == stored(number) for number in seen)


KILLED = """
import os, signal, sys
import numpy as np
from dp4tl_ffcv.loading.caches import ram
from tests.loading.test_caches import BATCH, Epochs, open_, shuffled

ram.AT_ONCE = 0
order = shuffled(4)
epochs = Epochs(open_("ram", sys.argv[1], shared_as=sys.argv[2]))
context = epochs.context(order)
for batch in range(3):
    context.start_batch(batch)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ram_uses_what_a_killed_process_has_read(
    paged: Any, stored: Callable[[int], bytes], window_by_window: None
) -> None:
    name = f"killed{os.getpid()}"
    command = [sys.executable, "-c", KILLED, paged.path, name]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    epochs = Epochs(open_("ram", paged.path, shared_as=name))
    order = shuffled(4)
    with epochs.context(order[: 3 * BATCH]) as context:
        context.start_batch(0)
        assert epochs.cache.reader.bytes_read == 0
        for number in order[: 3 * BATCH].tolist():
            assert epochs.sample(number, context) == stored(number)
    with epochs.context(order) as context:
        for batch, ids in enumerate(batches_of(order)):
            context.start_batch(batch)
            assert all(epochs.sample(number, context) == stored(number) for number in ids)


def test_two_caches_fill_one_memory_at_once(
    paged: Any, stored: Callable[[int], bytes], window_by_window: None
) -> None:
    name = f"at-once{os.getpid()}"
    one, two = (Epochs(open_("ram", paged.path, shared_as=name)) for _ in range(2))
    first, second = shuffled(1), shuffled(1)[::-1]
    with one.context(first) as left, two.context(second) as right:
        for batch in range(5):  # more than half
            for epochs, context, order in ((one, left, first), (two, right, second)):
                context.start_batch(batch)
                for number in batches_of(order)[batch].tolist():
                    assert epochs.sample(number, context) == stored(number)
    with one.context(first) as left, two.context(second) as right:
        assert not reading_threads()
        for number in RETAINED.tolist():
            assert one.sample(number, left) == two.sample(number, right) == stored(number)


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


# The choice of "auto", and of the page cache.

GIB = 1 << 30


def of_bytes(*sizes: int, gap: int = 0) -> RetainedExtents:
    """Return byte ranges of these sizes, one per sample."""
    ids, found = np.arange(len(sizes)), np.array(sizes)
    ptrs = (np.cumsum(found + gap) - found).astype(np.uint64)
    return RetainedExtents(ptrs, found, ids, ids, ids, np.arange(len(sizes) + 1))


@pytest.mark.parametrize(
    ("num_bytes", "is_shared", "room", "expected"),
    [
        (0, False, 0, "ram"),
        (10 * GIB, False, 0, "ram"),
        (10 * GIB + 1, False, 0, "extents"),
        (10 * GIB, True, 20 * GIB, "ram"),
        (10 * GIB, True, 20 * GIB - 2, "extents"),
        (10 * GIB + 1, True, 99 * GIB, "extents"),
    ],
)
def test_auto_is_ram_for_a_quarter_of_the_memory_with_room_to_share_it(
    num_bytes: int, is_shared: bool, room: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "available_memory", lambda: 40 * GIB)
    monkeypatch.setattr(caches, "shared_room", lambda: room)
    shared_as = "a" if is_shared else None
    assert choose_cache("auto", of_bytes(num_bytes), shared_as) == expected
    assert [choose_cache(name, of_bytes(num_bytes), shared_as) for name in CACHES] == [*CACHES]


@pytest.mark.parametrize("agreed", CACHES)
def test_processes_that_share_memory_use_the_cache_they_agree_on(
    agreed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "available_memory", lambda: 40 * GIB)
    monkeypatch.setattr(caches, "shared_room", lambda: GIB)
    monkeypatch.setattr(caches, "agree_on_machine", lambda *made: {("ram", "key"): agreed}[made])
    assert choose_cache("auto", of_bytes(1), "key") == agreed
    assert choose_cache("auto", of_bytes(1), None) == "ram"


def test_the_processes_of_a_machine_use_one_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice counts, for the same samples and the same call."""
    calls = [Counter[str](), Counter[str]()]  # of two processes

    def choices(key: str, *given: str) -> list[str]:
        made = []
        for own, name in zip(calls, given, strict=True):
            monkeypatch.setattr(caches, "_calls", own)
            made.append(agree_on_machine(name, key))
        return made

    alone = [agree_on_machine(name, "a") for name in ("ram", "extents")]
    assert alone == ["ram", "extents"]  # no group
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert choices("a", "ram", "extents") == ["ram", "ram"]
        assert choices("b", "extents", "ram") == ["extents", "extents"]
        assert choices("a", "extents", "ram") == ["extents", "extents"]  # the room has shrunk
        monkeypatch.setattr(platform, "node", lambda: "another machine")
        calls[0].clear()
        assert choices("b", "ram", "ram") == ["ram", "ram"]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("sizes", "gap", "expected"),
    [
        ((110_000,) * 5, 500_000, True),  # 27 pages each, and at most one more
        ((90_000,) * 5, 500_000, False),
        ((3_000,) * 500, 0, True),  # neighbours share their pages
        ((3_000,) * 500, 3_000, False),
        ((4096,) * 5, 4096, True),
        ((10 * GIB, 10 * GIB), 0, True),
        ((10 * GIB, 10 * GIB + 1), 0, False),  # no room
        ((), 0, True),
    ],
)
def test_the_page_cache_is_used_if_its_pages_fit_and_hold_little_else(
    sizes: tuple[int, ...], gap: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents_cache, "available_memory", lambda: 40 * GIB)
    assert page_cache_helps(of_bytes(*sizes, gap=gap)) == expected
