"""Plans of a compacted beton: fields of every kind, and the places of samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_ffcv import BetonError, BetonIndex, compact, image_fields, write_beton
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton.verify.verification import verify
from dp4tl_ffcv.compaction.plan import place, retain
from dp4tl_ffcv.jpeg import turbojpeg
from dp4tl_ffcv.utils import sha256_of_file
from tests.compaction.support import expected_places, sha256, stored_at
from tests.support.betons import (
    CUSTOM_FIELDS,
    PAGE_SIZE,
    OpaqueField,
    StampField,
    Written,
    damage,
    write_ours,
    write_stock,
)

Write = Callable[..., Path]

# Fields.


@pytest.mark.parametrize("options", [{}, {"images": "raw", "num_workers": 2}], ids=["copy", "raw"])
def test_every_field_of_every_writer_keeps_its_bytes(
    options: dict[str, Any], written: Written, tmp_path: Path
) -> None:
    ids = [3, 23, 0, 7, 8, 15, 16, 5, 21]
    out, custom = tmp_path / "out.beton", written.custom_fields
    index = compact(written.path, ids, out, custom_fields=custom, **options)
    source = BetonIndex.open(written.path, custom_fields=custom)
    data = out.read_bytes()
    assert sorted(index.column("hash")) == sorted(source.column("hash")[ids])
    columns = {field.name: index.column(field.name) for field in index.fields}
    for row in range(len(ids)):
        number = int(columns["hash"][row]) % (1 << 59)
        sample = written.samples[number]
        assert columns["score"][row] == sample[0]
        assert columns["label"][row] == sample[1]
        assert columns["stamp"]["when"][row] == sample[8][0]
        for name, stored in written.stored[number].items():
            value = columns[name][row]
            names = value.dtype.names or ()
            pointer = next((value[each] for each in names if each.endswith("ptr")), value)
            if name == "photo" and options:
                pixels = turbojpeg.decode(np.frombuffer(stored, dtype=np.uint8), fast=True)
                stored = pixels.tobytes()
                assert (value["height"], value["width"]) == pixels.shape[:2]
            assert sha256(stored_at(index, data, row, pointer)) == sha256(stored)
            if "size" in names:
                assert value["size"] == len(stored)
    tables = slice(format.HEADER.itemsize, len(columns) * format.FIELD.itemsize)  # and arguments
    assert data[tables] == written.path.read_bytes()[tables]
    assert len(index.allocations) == 7 * len(ids)
    assert verify(out, custom_fields=custom).problems == ()
    # ffcv's writer gives empty bytes the same pointer as the bytes that follow.
    assert (np.diff(np.sort(index.allocations["ptr"])) > 0).all()


def test_a_custom_field_may_have_no_bytes_for_a_sample(
    stamps: dict[str, Any], tmp_path: Path
) -> None:
    path = write_stock(tmp_path / "a.beton", stamps["samples"], stamps["fields"])
    index = compact(path, [0, 3, 4, 5], tmp_path / "b.beton", custom_fields=CUSTOM_FIELDS)
    stamp = index.column("stamp")
    for row in range(4):
        odd = stamp["when"][row] % 2
        assert stamp["size"][row] == 5 * odd
        assert (stamp["ptr"][row] != 0) == odd
    none = compact(path, [0, 4], tmp_path / "c.beton", custom_fields=CUSTOM_FIELDS)
    assert none.column("stamp")["ptr"].tolist() == [0, 0]


class ListField(OpaqueField):
    """Two byte strings, with pointers in a nested record and in an array."""

    metadata_type = np.dtype(
        [("parts", [("ptr", "<u8"), ("size", "<u8")], (2,)), ("both", "<u8", (2,)), ("id", "<u8")]
    )

    def encode(self, destination: Any, value: tuple[int, list[bytes]], malloc: Any) -> None:
        destination["id"], parts = value
        for number, part in enumerate(parts):
            pointer, storage = malloc(len(part))
            storage[:] = np.frombuffer(part, dtype=np.uint8)
            destination["parts"]["ptr"][0, number] = pointer
            destination["parts"]["size"][0, number] = len(part)
            destination["both"][0, number] = pointer


def test_pointers_in_nested_records_and_arrays_move(tmp_path: Path) -> None:
    parts = [[bytes([n]) * (n + 1), bytes([n + 100]) * 9] for n in range(9)]
    samples = [(n, (n << 60, parts[n])) for n in range(9)]
    path = write_stock(tmp_path / "a.beton", samples, {"label": IntField(), "list": ListField()})
    ids = [7, 2, 5]
    custom = {"list": ListField}
    index = compact(path, ids, tmp_path / "b.beton", custom_fields=custom, layout="class")
    data = index.path.read_bytes()
    assert index.column("list")["id"].tolist() == [n << 60 for n in sorted(ids)]
    for row, number in enumerate(sorted(ids)):
        record = index.column("list")[row]
        assert record["both"].tolist() == record["parts"]["ptr"].tolist()
        found = [stored_at(index, data, row, pointer) for pointer in record["both"]]
        assert found == parts[number]


class SignedField(OpaqueField):
    """Bytes whose pointer is stored as a signed number."""

    metadata_type = np.dtype([("at", "<i8"), ("n", "<i8")])

    def encode(self, destination: Any, value: bytes, malloc: Any) -> None:
        destination["at"], storage = malloc(len(value))
        storage[:] = np.frombuffer(value, dtype=np.uint8)


class MarkedField(OpaqueField):
    """Bytes or none; a pointer of all ones means none."""

    metadata_type = np.dtype([("at", "<u8"), ("n", "<u8")])

    def encode(self, destination: Any, value: bytes, malloc: Any) -> None:
        destination["at"] = (1 << 64) - 1
        if value:
            destination["at"], storage = malloc(len(value))
            storage[:] = np.frombuffer(value, dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "write"),
    [(SignedField, write_stock), (MarkedField, write_stock), (MarkedField, write_ours)],
)
def test_pointers_that_cannot_be_found_are_an_error(
    kind: Any, write: Write, tmp_path: Path
) -> None:
    samples = [(n, bytes([n]) * (n % 3 * 5)) for n in range(9)]
    path = write(tmp_path / "a.beton", samples, {"label": IntField(), "odd": kind()})
    with pytest.raises(BetonError, match=r"no known field .* custom fields \(odd\)"):
        compact(path, None, tmp_path / "b.beton", custom_fields={"odd": kind})
    assert not (tmp_path / "b.beton").exists()
    if kind is MarkedField:  # the pointers of samples with bytes are found
        ids = [1, 2, 4, 5]
        index = compact(path, ids, tmp_path / "b.beton", custom_fields={"odd": kind})
        data = (tmp_path / "b.beton").read_bytes()
        for row, label in enumerate(index.labels().tolist()):
            found = stored_at(index, data, row, index.column("odd")["at"][row])
            assert found == samples[label][1]


def test_samples_that_share_bytes_are_an_error(tmp_path: Path) -> None:
    samples = [(0, (n, bytes([n]) * 9)) for n in range(4)]
    fields = {"label": IntField(), "stamp": StampField()}
    path = write_ours(tmp_path / "a.beton", samples, fields)
    with damage(path, CUSTOM_FIELDS) as parts:
        parts.metadata["f1"]["ptr"][2] = parts.metadata["f1"]["ptr"][1]
    compact(path, [0, 1], tmp_path / "b.beton", custom_fields=CUSTOM_FIELDS)
    with pytest.raises(BetonError, match=r"corrupt: the field 'stamp' of a retained sample points"):
        compact(path, [0, 2], tmp_path / "c.beton", custom_fields=CUSTOM_FIELDS)
    assert not (tmp_path / "c.beton").exists()


def test_a_beton_may_start_with_empty_bytes(tmp_path: Path) -> None:
    """ffcv's writer gives empty bytes the offset 0."""
    sizes = [0, 0, 4, 0]
    samples = [(np.full(size, 7, dtype=np.uint8), n) for n, size in enumerate(sizes)]
    fields = {"blob": BytesField(), "label": IntField()}
    path = write_stock(tmp_path / "a.beton", samples, fields)
    assert BetonIndex.open(path).column("blob")["ptr"][0] == 0
    index = compact(path, None, tmp_path / "b.beton", layout="class")
    assert index.column("blob")["size"].tolist() == sizes
    starts = index.allocations["ptr"].tolist()
    assert index.column("blob")["ptr"].tolist() == starts == sorted(set(starts))


def test_the_order_of_the_allocation_table_does_not_matter(tmp_path: Path) -> None:
    samples = [
        (np.full(n % 2, 5, dtype=np.uint8), np.full(9, n, dtype=np.uint8), n) for n in range(6)
    ]
    fields = {"note": BytesField(), "blob": BytesField(), "label": IntField()}
    path = write_stock(tmp_path / "a.beton", samples, fields)
    compact(path, None, tmp_path / "b.beton")
    with damage(path) as parts:
        parts.table[:] = parts.table[::-1].copy()
    compact(path, None, tmp_path / "c.beton")
    assert sha256_of_file(tmp_path / "b.beton") == sha256_of_file(tmp_path / "c.beton")


# Places.


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 64) | st.sampled_from([0, 1, 31, 32, 33, 63, 64]), max_size=60),
    st.integers(0, 200),
)
def test_samples_follow_each_other_and_cross_no_page(rooms: list[int], tables: int) -> None:
    found = place(np.array(rooms, dtype=np.int64), tables, 64)
    places, end = expected_places(rooms, tables, 64)
    assert found.page_size == 64
    assert found.table_at == end
    for at, expected, room in zip(found.places.tolist(), places, rooms, strict=True):
        if room:
            assert at == expected
            assert at // 64 == (at + room - 1) // 64


def test_a_page_is_the_smallest_that_holds_the_largest_sample() -> None:
    for largest, page_size in ((63, 64), (64, 64), (65, 128), (300, 512)):
        assert place(np.array([largest, 5]), 10, 64).page_size == page_size
    assert place(np.array([1 << 31]), 0, PAGE_SIZE).page_size == 1 << 31
    with pytest.raises(BetonError, match="has 2147483649 bytes, but the largest page has"):
        place(np.array([5, (1 << 31) + 1]), 0, PAGE_SIZE)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900_000)), min_size=1, max_size=25),
    st.integers(0, 99),
)
def test_random_samples_keep_their_bytes_and_are_placed_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], seed: int
) -> None:
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("whole")
    samples = [
        (*(rng.integers(0, 9, size, np.uint8) for size in pair), number)
        for number, pair in enumerate(sizes)
    ]
    fields = {"a": BytesField(), "b": BytesField(), "label": IntField()}
    source = write_ours(folder / "a.beton", samples, fields)
    ids = np.append(0, np.flatnonzero(rng.random(len(sizes)) < 0.6))
    index = compact(source, ids, folder / "b.beton", seed=seed)
    assert verify(index).problems == ()
    tables = 3 * format.FIELD.itemsize + format.HEADER.itemsize + index.metadata.nbytes
    labels = index.labels().tolist()
    rooms = [sum(max(1, size) for size in sizes[label]) for label in labels]
    places, end = expected_places(rooms, tables, PAGE_SIZE)
    assert int(index.header["alloc_table_ptr"]) == end
    assert index.column("a")["ptr"].tolist() == places
    data = index.path.read_bytes()
    for label, a, b in zip(labels, index.column("a"), index.column("b"), strict=True):
        assert b["ptr"] == a["ptr"] + max(1, int(a["size"]))
        for part, (ptr, size) in zip(samples[label][:2], (a.tolist(), b.tolist()), strict=True):
            assert sha256(data[ptr : ptr + size]) == sha256(part.tobytes())


def test_padding_of_the_tables_is_zero(tmp_path: Path) -> None:
    """The same arguments must give the same bytes."""
    samples = [(np.zeros((4, 4, 3), dtype=np.uint8), 1) for _ in range(50)]
    fields = {"image": image_fields(mode="raw")["image"], "label": IntField()}
    index = write_beton(tmp_path / "a.beton", samples, fields, num_workers=0)
    np.full(10_000, 255, dtype=np.uint8)  # memory that numpy may reuse
    metadata = retain(index, np.arange(49, -1, -1)).metadata
    clean = np.zeros(50, dtype=metadata.dtype)
    for name in metadata["f0"].dtype.names or ():
        clean["f0"][name] = metadata["f0"][name]
    clean["f1"] = metadata["f1"]
    assert metadata.tobytes() == clean.tobytes()
