"""`BetonIndex` against ffcv's own Reader and the bytes of the file; on files that are no betons."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType
from ffcv.writer import DatasetWriter

from dp4tl_ffcv import BetonError, BetonIndex, write_beton

HEADER = HeaderType.fields
TABLES_START = HeaderType.itemsize + 2 * FieldDescType.itemsize  # metadata of the tiny beton
DATA_START = TABLES_START + 6 * 24
MAX = 2**64 - 1


def put(path: Path, at: int, value: Any) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(np.asarray(value).tobytes())


def put_header(path: Path, name: str, value: int) -> None:
    dtype, offset = HEADER[name][:2]
    put(path, offset, np.array(value, dtype=dtype))


def put_extent(path: Path, row: int, **values: int) -> None:
    """Overwrite entries of one row of the allocation table."""
    header = np.fromfile(path, dtype=HeaderType, count=1)[0]
    start = int(header["alloc_table_ptr"]) + row * ALLOC_TABLE_TYPE.itemsize
    for name, value in values.items():
        put(path, start + ALLOC_TABLE_TYPE.fields[name][1], np.uint64(value))


# What every reader of the same file must say.


def test_tables_are_those_of_ffcvs_reader(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    reader = Reader(str(written.path), custom_handlers=written.custom_fields)
    assert index.metadata.dtype == reader.metadata.dtype
    assert index.metadata.tobytes() == reader.metadata.tobytes()
    assert index.allocations.dtype == reader.alloc_table.dtype
    assert index.allocations.tobytes() == reader.alloc_table.tobytes()
    assert index.header.tobytes() == reader.header.tobytes()
    assert [field.name for field in index.fields] == reader.field_names
    assert index.num_samples == reader.num_samples == len(written.samples)
    assert index.page_size == reader.page_size


def test_fields_are_named_with_their_kinds(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    assert {field.name: field.kind for field in index.fields} == {
        "score": "float",
        "label": "int",
        "photo": "rgb_image",
        "pixels": "rgb_image",
        "blob": "bytes",
        "info": "json",
        "vector": "ndarray",
        "tensor": "torch_tensor",
        "stamp": "custom",
        "hash": "custom",
    }


def test_columns_hold_what_was_written(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    scores, labels, photos, *_, stamps, hashes = zip(*written.samples, strict=True)
    assert index.column("score").tolist() == list(scores)
    assert index.labels().tolist() == list(labels)
    assert index.labels().dtype == np.int64
    assert index.column("photo")["height"].tolist() == [len(photo) for photo in photos]
    assert index.column("stamp")["when"].tolist() == [when for when, _ in stamps]
    assert index.column("hash").tolist() == list(hashes)


def test_class_counts_are_those_of_the_labels(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    labels = [sample[1] for sample in written.samples]
    assert index.num_classes == max(labels) + 1
    counts = [labels.count(label) for label in range(max(labels) + 1)]
    assert index.class_counts().tolist() == counts
    assert 0 in counts  # a class without samples is counted as well


def test_extents_hold_the_bytes_of_their_sample(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    data = written.path.read_bytes()
    for number, stored in enumerate(written.stored):
        extents = index.extents([number])
        assert extents["sample_id"].tolist() == [number] * len(stored)
        found = [data[ptr : ptr + size] for _, ptr, size in extents.tolist()]
        assert found == list(stored.values())


def test_pointers_of_the_columns_lead_to_the_bytes(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    data = written.path.read_bytes()
    for number, stored in enumerate(written.stored):
        for name, expected in stored.items():
            entry = index.column(name)[number]
            if entry.dtype.names:
                entry = entry["data_ptr" if "data_ptr" in entry.dtype.names else "ptr"]
            assert data[int(entry) : int(entry) + len(expected)] == expected


@pytest.mark.parametrize("ids", [[], [7], [5, 0, 23], [3, 3, 1], list(range(23, -1, -1))])
def test_extents_come_in_the_order_asked_for(written: Any, ids: list[int]) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    table = index.allocations.tolist()
    expected = [row for number in ids for row in table if row[0] == number]
    assert index.extents(ids).tolist() == expected


def test_sample_bytes_are_the_sums_of_the_extents(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    expected = [sum(map(len, stored.values())) for stored in written.stored]
    assert index.sample_bytes().tolist() == expected


def test_page_table_lists_the_samples_of_every_page(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    expected: dict[int, list[int]] = {}
    for number, ptr, _ in sorted(index.allocations.tolist(), key=lambda row: row[1]):
        expected.setdefault(ptr // index.page_size, []).append(number)
    pages, starts, samples = index.page_table
    assert len(expected) > 2
    assert pages.tolist() == sorted(expected)
    assert starts[0] == 0
    assert starts[-1] == len(samples) == len(index.allocations)
    for page, start, stop in zip(pages, starts[:-1], starts[1:], strict=True):
        assert samples[start:stop].tolist() == expected[int(page)]


def test_tables_cannot_be_written_to(written: Any) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    for table in (index.metadata, index.allocations):
        assert not table.flags.writeable


def test_repr_names_file_samples_and_fields(tiny: Path) -> None:
    text = repr(BetonIndex.open(tiny))
    assert "tiny.beton" in text
    assert "num_samples=6" in text
    assert "image: rgb_image, label: int" in text


def test_empty_bytes_of_a_first_sample_are_accepted(stock: Any, tmp_path: Path) -> None:
    """ffcv places them before its first page, at byte 0."""
    samples = [(np.zeros(size, dtype=np.uint8), 0) for size in (0, 4, 0)]
    path = stock(tmp_path / "a.beton", samples, {"blob": BytesField(), "label": IntField()})
    index = BetonIndex.open(path)
    assert index.extents([0])["ptr"].tolist() == [0]
    assert index.sample_bytes().tolist() == [0, 4, 0]


def test_a_beton_without_extents_is_accepted(stock: Any, tmp_path: Path) -> None:
    path = stock(tmp_path / "a.beton", [(1, 0.5), (0, 2.5)], {"a": IntField(), "b": FloatField()})
    index = BetonIndex.open(path)
    assert index.labels("a").tolist() == [1, 0]
    assert index.extents([1, 0]).tolist() == []
    assert index.sample_bytes().tolist() == [0, 0]
    assert [part.tolist() for part in index.page_table] == [[], [0], []]


def test_a_custom_field_may_keep_no_bytes(
    stock: Any, stamps: dict[str, Any], tmp_path: Path
) -> None:
    classes = {"stamp": type(stamps["fields"]["stamp"])}
    for path in (stock(tmp_path / "a.beton", **stamps), tmp_path / "b.beton"):
        if not path.exists():
            write_beton(path, **stamps, seed=None)
        index = BetonIndex.open(path, custom_fields=classes)
        assert index.sample_bytes().tolist() == [0, 5] * 3
        assert index.column("stamp")["size"].tolist() == [0, 5] * 3
        assert index.column("stamp")["ptr"].tolist()[::2] == [0, 0, 0]
        assert index.extents([1, 0, 3])["sample_id"].tolist() == [1, 3]


# Fingerprints.


def test_fingerprint_is_of_the_tables_and_not_of_the_place(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other" / "name.beton"
    copy.parent.mkdir()
    shutil.copyfile(tiny, copy)
    fingerprint = BetonIndex.open(tiny).fingerprint
    assert BetonIndex.open(copy).fingerprint == fingerprint
    assert len(fingerprint) == 64
    assert set(fingerprint) <= set("0123456789abcdef")


def test_fingerprint_changes_with_a_label(tiny: Path) -> None:
    before = BetonIndex.open(tiny)
    metadata = before.metadata.copy()
    metadata["f1"][4] = 2
    put(tiny, TABLES_START, metadata)
    after = BetonIndex.open(tiny)
    assert before.labels().tolist() == [0, 1, 2, 0, 1, 2]
    assert after.labels().tolist() == [0, 1, 2, 0, 2, 2]
    assert after.fingerprint != before.fingerprint


def test_fingerprint_changes_with_a_place_a_name_and_the_page_size(tiny: Path) -> None:
    fingerprints = [BetonIndex.open(tiny).fingerprint]
    changes: list[Callable[[], None]] = [
        lambda: put_extent(tiny, 3, size=191),
        lambda: put(tiny, HeaderType.itemsize + 1, np.frombuffer(b"photo\0", dtype=np.uint8)),
        lambda: put_header(tiny, "page_size", 1 << 22),
    ]
    for change in changes:
        change()
        fingerprints.append(BetonIndex.open(tiny).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


# Fields and labels that are not what was asked for.


def test_a_missing_field_is_answered_with_those_there_are(tiny: Path) -> None:
    index = BetonIndex.open(tiny)
    for method in (index.field, index.column, index.labels, index.class_counts):
        with pytest.raises(BetonError, match=r"no field 'target'. Its fields are image, label\."):
            method("target")


@pytest.mark.parametrize("field", ["score", "photo", "vector", "stamp", "hash"])
def test_labels_of_another_kind_are_refused(written: Any, field: str) -> None:
    index = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    with pytest.raises(BetonError, match=rf"field '{field}' .* holds no class ids; its kind is"):
        index.labels(field)


def test_negative_labels_are_refused(stock: Any, tmp_path: Path) -> None:
    path = stock(tmp_path / "a.beton", [(3,), (-1,)], {"label": IntField()})
    with pytest.raises(BetonError, match=r"field 'label' .* holds the negative class id -1"):
        BetonIndex.open(path).labels()


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 6], ValueError, r"^`indices` must lie in \[0, 6\); got values from 0 to 6"),
        ([-1], ValueError, r"^`indices` must lie in \[0, 6\)"),
        ([True] * 6, TypeError, r"^`indices` must be integers; .*np\.flatnonzero"),
        ([0.0], TypeError, "^`indices` must be integers; got dtype float64"),
        (["0"], TypeError, "^`indices` must be integers"),
        ([[0, 1]], ValueError, r"^`indices` must have shape \(M,\); got \(1, 2\)"),
        (3, ValueError, r"^`indices` must have shape \(M,\); got \(\)"),
        (np.array([2**63], dtype=np.uint64), ValueError, "^`indices` must lie in"),
    ],
)
def test_bad_indices_are_refused(
    tiny: Path, indices: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BetonIndex.open(tiny).extents(indices)


def test_the_manifest_may_name_more_classes_than_have_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    write_beton(path, [(1,), (0,)], {"label": IntField()}, class_names=["a", "b", "c"], seed=None)
    index = BetonIndex.open(path)
    assert index.num_classes == 3
    assert index.class_counts().tolist() == [1, 1, 0]


# Files that are no betons, or not whole.


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BetonIndex.open(tmp_path / "none.beton")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0123456789",
        bytes(23),
        bytes(4096),
        b"This is a text, and a rather long one.\n" * 100,
        np.random.default_rng(1).bytes(100_000),
        b"\x02\x00" + np.random.default_rng(2).bytes(100_000),
        b"\x02\x00" + bytes(4096),
    ],
    ids=["empty", "10 bytes", "23 zeros", "zeros", "text", "random", "random 2", "zeros 2"],
)
def test_a_file_that_is_no_beton_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(content)
    with pytest.raises(BetonError, match=r"a\.beton.* is (not a beton|truncated or corrupt)"):
        BetonIndex.open(path)


@pytest.mark.parametrize("version", [0, 1, 3, 65535])
def test_another_version_is_refused(version: int, tiny: Path) -> None:
    put_header(tiny, "version", version)
    with pytest.raises(BetonError, match=rf"is not a beton of version 2: .*{version}, not 2"):
        BetonIndex.open(tiny)


def test_what_a_stopped_ffcv_writer_leaves_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    writer = DatasetWriter(str(path), {"label": IntField()}, num_workers=1)
    writer.num_samples = 5
    writer.prepare()  # header, descriptors; a killed run leaves these and some pages
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    for pages in (0, 1, 24):
        with path.open("ab") as stream:
            stream.write(bytes(pages << 20))
        with pytest.raises(BetonError, match=r"is unfinished: its writer was stopped"):
            BetonIndex.open(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alloc_table_ptr", 0, "is unfinished"),
        ("alloc_table_ptr", 8, "is truncated or corrupt"),
        ("alloc_table_ptr", TABLES_START, "is truncated or corrupt"),
        ("alloc_table_ptr", MAX, "is truncated or corrupt"),
        ("num_fields", 0, "is not a beton"),
        ("num_fields", 3, "is (not a beton|truncated or corrupt)"),
        ("num_fields", 65535, "is (not a beton|truncated or corrupt)"),
        ("num_samples", 0, "bytes of sample 5 and has 0"),
        ("num_samples", 5, "bytes of sample 5 and has 5"),
        ("num_samples", 7, "sample 6"),
        ("num_samples", 2**40, "is truncated or corrupt"),
        ("num_samples", MAX, "is truncated or corrupt"),
        ("page_size", 0, "is not a beton"),
        ("page_size", 3 << 20, "is not a beton"),
    ],
)
def test_a_damaged_header_is_refused(name: str, value: int, message: str, tiny: Path) -> None:
    put_header(tiny, name, value)
    with pytest.raises(BetonError, match=message):
        BetonIndex.open(tiny)


@pytest.mark.parametrize("at", [0, 1])
def test_a_damaged_field_descriptor_is_refused(at: int, tiny: Path) -> None:
    """An unknown type, a name that is not ASCII."""
    put(tiny, HeaderType.itemsize + at, np.uint8(200))
    with pytest.raises(BetonError, match="is not a beton"):
        BetonIndex.open(tiny)


@pytest.mark.parametrize(
    "values",
    [
        {"sample_id": 6},
        {"sample_id": MAX},
        {"ptr": 0},
        {"ptr": TABLES_START},
        {"ptr": (2 << 21) - 191},  # one byte reaches into the allocation table
        {"ptr": MAX},
        {"ptr": MAX - 190},  # the end wraps around to 1
        {"size": 1 << 21 | 1},
        {"ptr": DATA_START, "size": (2 << 21) - DATA_START + 1},
        {"size": MAX},
        {"ptr": 1 << 21, "size": MAX - (1 << 21) + 2},  # the end wraps around to 1
        {"ptr": 2**63, "size": 2**63},
    ],
    ids=str,
)
def test_an_extent_outside_of_the_data_is_refused(values: dict[str, int], tiny: Path) -> None:
    put_extent(tiny, 2, **values)
    found = "(sample 2 lies outside of the data region|bytes of sample [0-9]+ and has 6)"
    with pytest.raises(BetonError, match=f"is truncated or corrupt: .*{found}"):
        BetonIndex.open(tiny)


def test_a_pointer_that_starts_no_extent_is_refused(tiny: Path) -> None:
    metadata = BetonIndex.open(tiny).metadata.copy()
    metadata["f0"]["data_ptr"][4] += 1
    put(tiny, TABLES_START, metadata)
    with pytest.raises(BetonError, match="sample 4 has no bytes for 'image'"):
        BetonIndex.open(tiny)


def test_a_tiny_beton_cut_anywhere_is_refused(tiny: Path) -> None:
    whole = tiny.read_bytes()
    table_at = int(BetonIndex.open(tiny).header["alloc_table_ptr"])
    between = np.random.default_rng(3).integers(0, table_at, 100).tolist()
    cuts = {*range(TABLES_START + 200), *between, *range(table_at - 50, len(whole))}
    with tiny.open("r+b") as stream:
        for size in sorted(cuts, reverse=True):
            stream.truncate(size)
            with pytest.raises(BetonError, match=r"tiny\.beton.* is (not|truncated|unfin)"):
                BetonIndex.open(tiny)


def test_a_beton_of_every_kind_cut_in_its_table_is_refused(written: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut.beton"
    shutil.copyfile(written.path, path)
    rows = len(BetonIndex.open(path, custom_fields=written.custom_fields).allocations)
    size = path.stat().st_size
    with path.open("r+b") as stream:
        for left in range(rows - 1, -1, -1):
            stream.truncate(size - (rows - left) * ALLOC_TABLE_TYPE.itemsize)
            with pytest.raises(BetonError, match="is truncated or corrupt"):
                BetonIndex.open(path, custom_fields=written.custom_fields)


def test_bytes_behind_the_table_are_refused(tiny: Path) -> None:
    with tiny.open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BetonError, match="is truncated or corrupt"):
        BetonIndex.open(tiny)


@pytest.mark.parametrize("given", [{}, {"hash": None}])
def test_a_custom_field_needs_its_class(written: Any, given: dict[str, Any]) -> None:
    with pytest.raises(BetonError, match=r"has the custom field 'stamp'.*`custom_fields`"):
        BetonIndex.open(written.path, custom_fields=given)


def test_a_known_field_may_be_given_a_class_as_well(tiny: Path) -> None:
    index = BetonIndex.open(tiny, custom_fields={"image": RGBImageField})
    assert index.metadata.tobytes() == BetonIndex.open(tiny).metadata.tobytes()


# The allocation table, which may be released.


def test_released_allocations_are_read_again_when_asked_for(written: Any) -> None:
    index, whole = (
        BetonIndex.open(written.path, custom_fields=written.custom_fields) for _ in range(2)
    )
    index.release_allocations()
    index.release_allocations()
    assert index.allocations.tobytes() == whole.allocations.tobytes()
    assert not index.allocations.flags.writeable
    assert index.allocations is index.allocations  # and kept then
    for ask in (
        lambda index: index.fingerprint,
        lambda index: index.extents([3, 3, 1]).tobytes(),
        lambda index: index.sample_bytes().tobytes(),
        lambda index: [part.tobytes() for part in index.page_table],
    ):
        index.release_allocations()
        assert ask(index) == ask(whole)


def test_the_rest_needs_no_allocations(tiny: Path) -> None:
    index = BetonIndex.open(tiny)
    fingerprint = index.fingerprint
    index.release_allocations()
    tiny.unlink()
    assert index.labels().tolist() == [0, 1, 2, 0, 1, 2]
    assert (index.num_samples, index.page_size) == (6, 1 << 21)
    assert index.fingerprint == fingerprint
    with pytest.raises(FileNotFoundError):
        _ = index.allocations


def test_allocations_of_a_beton_that_took_its_place_are_refused(tiny: Path, tmp_path: Path) -> None:
    index = BetonIndex.open(tiny)
    index.release_allocations()
    metadata = index.metadata.copy()
    metadata["f1"][4] = 2
    put(tiny, TABLES_START, metadata)
    with pytest.raises(BetonError, match=r"tiny.* was replaced by another beton"):
        _ = index.allocations
    write_beton(tmp_path / "other.beton", [(1,), (0,)], {"label": IntField()})
    shutil.copyfile(tmp_path / "other.beton", tiny)
    with pytest.raises(BetonError, match="was replaced by another beton"):
        _ = index.allocations


def test_allocations_of_a_beton_that_was_cut_are_refused(tiny: Path) -> None:
    index = BetonIndex.open(tiny)
    index.release_allocations()
    whole = tiny.read_bytes()
    for size in (len(whole) - 1, len(whole) - 24, len(whole) // 2, 10, 0):
        tiny.write_bytes(whole[:size])
        with pytest.raises(BetonError, match=r"tiny\.beton.* is (not|truncated|unfin)"):
            _ = index.allocations
    tiny.write_bytes(whole)
    assert len(index.allocations) == 6
