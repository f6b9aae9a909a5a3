"""Retained byte ranges, compared with a plain loop over the tables of a beton."""

import tracemalloc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, JSONField, NDArrayField, RGBImageField
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, write_beton
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton.ranges import BLOCK
from dp4tl_ffcv.loading.reading.extents import RetainedExtents, retained_extents
from tests.support.betons import StampField, write_stock

NUM_SAMPLES = 30
# Some bytes are empty, also at the end of a sample: ffcv gives them the address of the next value.
FIELDS = {
    "first": BytesField,
    "label": IntField,
    "image": lambda: RGBImageField(write_mode="jpg", jpeg_quality=90),
    "blob": BytesField,
    "vector": lambda: NDArrayField(np.dtype("<f4"), (3, 2)),
    "info": JSONField,
    "last": BytesField,
}
POINTING = sorted(set(FIELDS) - {"label"})
KINDS = ["ours", "ffcv's", "two workers", "custom", "custom, shuffled", "ffcv's, shuffled"]


def a_sample(number: int, custom: bool) -> tuple[Any, ...]:
    rng = np.random.default_rng(number)
    stamp = (-number, bytes(number) if number % 2 else None)

    def some_bytes(length: int) -> NDArray[np.uint8]:
        return rng.integers(0, 256, length, dtype=np.uint8)

    return (
        some_bytes(number % 2),
        number % 5,
        rng.integers(0, 256, (8 + number % 3, 9, 3), dtype=np.uint8),
        some_bytes(number % 3 * 7),
        rng.normal(size=(3, 2)).astype(np.float32),
        {"number": number},
        some_bytes(number % 4),
        *([stamp] if custom else []),
    )


def write(kind: str, path: Path) -> Path:
    custom = "custom" in kind
    samples = [a_sample(number, custom) for number in range(NUM_SAMPLES)]
    fields = {name: make() for name, make in FIELDS.items()}
    if custom:
        fields["stamp"] = StampField()
    if kind == "ours":
        write_beton(path, samples, fields, seed=None)
    else:
        write_stock(path, samples, fields, 2 if kind == "two workers" else 1, chunk=4)
    if "shuffled" in kind:
        shuffle_allocations(path)
    return path


def shuffle_allocations(path: Path) -> None:
    """Put the rows of the allocation table in another order."""
    data = bytearray(path.read_bytes())
    start = int(np.frombuffer(data, dtype=format.HEADER, count=1)[0]["alloc_table_ptr"])
    table = np.frombuffer(bytes(data[start:]), dtype=format.ALLOCATION)
    data[start:] = np.random.default_rng(7).permutation(table).tobytes()
    path.write_bytes(data)


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BetonIndex]:
    folder = tmp_path_factory.mktemp("extents")
    return {
        kind: BetonIndex.open(
            write(kind, folder / f"{number}.beton"), custom_fields={"stamp": StampField}
        )
        for number, kind in enumerate(KINDS)
    }


def plain_extents(
    index: BetonIndex, ids: Collection[int], fields: Collection[str]
) -> dict[int, tuple[int, set[int]]]:
    """Return the size and the possible owners of the byte range at each offset, if not empty."""
    used = [field for field in index.fields if field.name in fields]
    pointed = {
        int(values[number])
        for field in used
        for values in format.pointers(index.column(field.name), field.kind)
        for number in ids
    }
    custom = any(field.kind == "custom" for field in used)
    found: dict[int, tuple[int, set[int]]] = {}
    for owner, ptr, size in index.allocations.tolist():
        if size and owner in ids and (custom or ptr in pointed):
            known, owners = found.get(ptr, (-1, set()))
            if size > known:
                found[ptr] = (size, {owner})
            elif size == known:
                owners.add(owner)
    return found


def assert_consistent(table: RetainedExtents) -> None:
    assert (table.ptrs.dtype, table.sizes.dtype, table.owners.dtype) == (np.uint64, np.int64, int)
    assert (table.ptrs[1:] > table.ptrs[:-1]).all()
    assert len(table.ptrs) == len(table.sizes) == len(table.owners) == len(table.rows)
    assert len(table.starts) == len(table.samples) + 1
    assert sorted(table.rows.tolist()) == list(range(len(table.ptrs)))
    for at, sample in enumerate(table.samples):
        mine = table.rows[table.starts[at] : table.starts[at + 1]]
        assert (table.owners[mine] == sample).all()
    assert table.num_bytes == sum(table.sizes.tolist())


ids_lists = st.lists(st.integers(0, NUM_SAMPLES - 1), max_size=40)
field_sets = st.sets(st.sampled_from([*POINTING, "label", "stamp"]))


@pytest.mark.parametrize("kind", KINDS)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(ids=ids_lists, fields=field_sets)
def test_extents_equal_a_plain_loop(
    kind: str, ids: list[int], fields: set[str], betons: dict[str, BetonIndex]
) -> None:
    index = betons[kind]
    table = retained_extents(index, np.array(ids, dtype=np.int64), fields)
    assert_consistent(table)
    assert table.samples.tolist() == sorted(set(ids))
    expected = plain_extents(index, set(ids), fields)
    rows = zip(table.ptrs.tolist(), table.sizes.tolist(), table.owners.tolist(), strict=True)
    found = {ptr: (size, owner) for ptr, size, owner in rows}
    assert {ptr: size for ptr, (size, _) in found.items()} == {
        ptr: size for ptr, (size, _) in expected.items()
    }
    assert all(owner in expected[ptr][1] for ptr, (_, owner) in found.items())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(retained=st.sets(st.integers(0, NUM_SAMPLES - 1), min_size=1), data=st.data())
def test_rows_of_finds_samples_in_any_order_and_number(
    retained: set[int], data: st.DataObject, betons: dict[str, BetonIndex]
) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    fields = data.draw(field_sets)
    wanted = data.draw(st.lists(st.sampled_from(sorted(retained)), max_size=30))
    table = retained_extents(betons[kind], np.array(sorted(retained)), fields)
    rows, at = table.rows_of(np.array(wanted, dtype=np.int64))
    expected = [
        (position, row)
        for position, sample in enumerate(wanted)
        for row in np.flatnonzero(table.owners == sample).tolist()
    ]
    found = sorted(zip(at.tolist(), rows.tolist(), strict=True))
    assert found == expected


def test_fields_without_bytes_have_no_extents(betons: dict[str, BetonIndex]) -> None:
    for fields in (set(), {"label"}, {"no such field"}):
        table = retained_extents(betons["ours"], np.arange(NUM_SAMPLES), fields)
        assert_consistent(table)
        assert (len(table.ptrs), table.num_bytes) == (0, 0)
        assert table.samples.tolist() == list(range(NUM_SAMPLES))
        assert table.rows_of(np.array([3, 3]))[0].tolist() == []


class _Tables:
    """Stands in for an index of very many samples with an image each."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.allocations = np.zeros(num_samples, dtype=format.ALLOCATION)
        self.allocations["sample_id"] = np.arange(num_samples)
        self.allocations["ptr"] = np.arange(num_samples) * 100_000 + 10**7
        self.allocations["size"] = 90_000
        self.fields: Sequence[Any] = ()
        self.path = "many.beton"

    extents, check_ids = BetonIndex.extents, BetonIndex.check_ids

    def __len__(self) -> int:
        return self.num_samples


def test_memory_grows_with_the_retained_samples() -> None:
    def peak(num_samples: int, num_retained: int) -> int:
        index: Any = _Tables(num_samples)
        ids = np.sort(np.random.default_rng(1).choice(num_samples, num_retained, replace=False))
        tracemalloc.start()
        table = retained_extents(index, ids, {"image"})
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert table.samples.tolist() == ids.tolist()
        return most

    few, many = 4_000, 400_000
    # In addition: a flag for each sample of the file, and the rows of one block.
    assert peak(many, few) <= many + 200 * few + 200 * BLOCK
    assert peak(many, many // 2) <= many + 200 * many // 2 + 200 * BLOCK
