"""The memory manager: from an address to bytes in compiled code; many loaders in one process."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from ffcv.reader import Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_ffcv import BetonError
from dp4tl_ffcv.loading.caches import open_cache
from dp4tl_ffcv.loading.decoding.workspace import Workspace
from dp4tl_ffcv.loading.ffcv_adapter.memory import RetainedMemory, bytes_at
from dp4tl_ffcv.loading.reading.extents import retained_extents
from dp4tl_ffcv.loading.reading.file_reader import FileReader

# ffcv's Loader has numba print KeyErrors on stderr when a second one is made or freed.
MANY = """
import gc, sys
import numpy as np
from dp4tl_ffcv import PrunedLoader, Selection, BetonIndex

path = sys.argv[1]
index = BetonIndex.open(path)
for turn in range(12):
    selection = Selection.of_classes(index, [turn % 10, 3 + turn % 7][: 1 + turn % 2])
    loader = PrunedLoader(
        path, 6, selection=selection, relabel=True, order="random", num_workers=1 + turn % 2,
        cache=("os", "extents", "ram")[turn % 3],
    )
    count = sum(len(labels) for _, labels, _ in loader)
    assert count == len(selection), (count, len(selection))
    if turn % 4 == 0:
        del loader
    gc.collect()
print("done")
"""


def test_many_loaders_are_made_and_freed_in_silence(colours: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", MANY, str(colours.path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    table=st.dictionaries(st.integers(0, 400), st.tuples(st.integers(0, 30), st.booleans())),
    data=st.data(),
)
def test_an_address_leads_to_the_extent_that_starts_there(
    table: dict[int, tuple[int, bool]], data: st.DataObject
) -> None:
    ptrs = np.array(sorted(table), dtype=np.uint64)
    sizes = np.array([table[int(ptr)][0] for ptr in ptrs], dtype=np.int64)
    there = np.array([table[int(ptr)][1] for ptr in ptrs], dtype=bool)
    memory = np.random.default_rng(1).integers(0, 256, int(sizes.sum()), dtype=np.uint8)
    places = np.where(there, np.cumsum(sizes) - sizes, -1).astype(np.int64)
    known = st.sampled_from(ptrs.tolist()) if table else st.just(5)
    address = data.draw(st.one_of(known, st.integers(0, 500), st.just(2**64 - 1)))
    size, is_there = table.get(address, (0, False))
    expected = b""
    if is_there:
        start = int(places[ptrs.tolist().index(address)])
        expected = memory[start : start + size].tobytes()
    assert bytes(bytes_at(np.uint64(address), memory, places, ptrs, sizes)) == expected


def manager_of(dataset: Any, cache: str = "extents") -> RetainedMemory:
    extents = retained_extents(dataset.index, np.arange(0, 120, 5), {"image"})
    reader = FileReader(str(dataset.path))
    opened = open_cache(cache, reader, extents, read_ahead=1, shared_as=None)
    return RetainedMemory(dataset.index, opened, 17, lambda: Workspace(2, 100))


def test_the_state_holds_what_decoders_are_told(colours: Any) -> None:
    manager = manager_of(colours)
    manager.epoch = 3
    context = manager.schedule_epoch([np.arange(0, 15, 5), np.arange(15, 20, 5)])
    manager.epoch = 9  # of an epoch that begins later
    with context:
        data, places, ptrs, sizes, counter, scratch, failures = context.state
        extents = manager.cache.extents
        assert ptrs is extents.ptrs
        assert sizes is extents.sizes
        assert (counter.tolist(), counter.dtype) == ([17, 3], np.uint64)
        assert (data.dtype, places.dtype, len(places)) == (np.uint8, np.int64, len(ptrs))
        assert scratch.shape == (2, 128)
        assert (scratch.ctypes.data % 64, scratch.strides) == (0, (128, 1))
        assert failures.tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_there_is_no_state_outside_of_an_epoch(when: str, colours: Any) -> None:
    context = manager_of(colours).schedule_epoch([np.array([0, 5])])
    if when == "after":
        with context:
            pass
    with pytest.raises(RuntimeError, match=r"^`state` exists only within"):
        _ = context.state
    context.check()  # nothing to say
    context.start_batch(0)


def test_what_a_decoder_reports_is_raised_once(colours: Any) -> None:
    with manager_of(colours).schedule_epoch([np.array([0, 5])]) as context:
        context.check()
        context.state[-1][1] = 35, 3
        with pytest.raises(BetonError, match=r"^sample 35 of '.*colours\.beton' cannot be decoded"):
            context.check()
        context.check()


def test_an_epoch_that_cannot_begin_can_be_ended(colours: Any) -> None:
    context = manager_of(colours).schedule_epoch([np.array([0, 5])])
    context._cache = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        context.__enter__()
    for _ in range(2):
        context.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="exists only within"):
        _ = context.state


def test_pages_are_those_of_ffcvs_own_manager(paged: Any) -> None:
    reader = Reader(str(paged.path))
    expected: dict[int, set[int]] = {}
    for sample, ptr, _ in reader.alloc_table.tolist():
        expected.setdefault(ptr // reader.page_size, set()).add(sample)
    manager = manager_of(paged)
    assert {page: found for page, found in manager.page_to_samples.items() if found} == expected
    assert len(expected) > 3
