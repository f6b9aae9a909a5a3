"""`BetonIndex`: it agrees with ffcv's Reader and with the bytes of the file; rejected files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter

from dp4tl_ffcv import (
    BetonError,
    BetonIndex,
    Manifest,
    Selection,
    compact,
    verify,
    write_beton,
)
from dp4tl_ffcv.beton import format, read_manifest
from dp4tl_ffcv.beton import index as index_module
from dp4tl_ffcv.beton.manifest import manifest_path, new_manifest
from tests.support.betons import Parts, Written, damage, write_stock

TABLES_START = format.HEADER.itemsize + 2 * format.FIELD.itemsize  # metadata of the tiny beton
DATA_START = TABLES_START + 6 * 24
MAX = 2**64 - 1
REJECTED = r"\.beton' is (not a beton|unfinished|truncated or corrupt)"


def test_tables_agree_with_ffcvs_reader(written: Written) -> None:
    index = written.index
    reader = Reader(str(written.path), custom_handlers=written.custom_fields)
    assert index.metadata.dtype == reader.metadata.dtype
    assert index.metadata.tobytes() == reader.metadata.tobytes()
    assert index.allocations.dtype == reader.alloc_table.dtype
    assert index.allocations.tobytes() == reader.alloc_table.tobytes()
    assert index.header.tobytes() == reader.header.tobytes()
    assert [field.name for field in index.fields] == reader.field_names
    assert len(index) == index.num_samples == reader.num_samples == len(written.samples)
    assert index.page_size == reader.page_size
    assert not index.metadata.flags.writeable
    assert not index.allocations.flags.writeable


def test_columns_hold_the_written_values(written: Written) -> None:
    index = written.index
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
    scores, labels, photos, *_, stamps, hashes = zip(*written.samples, strict=True)
    assert index.column("score").tolist() == list(scores)
    assert index.labels().tolist() == list(labels)
    assert index.labels().dtype == np.int64
    assert index.column("photo")["height"].tolist() == [len(photo) for photo in photos]
    assert index.column("stamp")["when"].tolist() == [when for when, _ in stamps]
    assert index.column("hash").tolist() == list(hashes)
    counts = [labels.count(label) for label in range(max(labels) + 1)]
    assert index.num_classes == len(counts)
    assert index.class_counts().tolist() == counts
    assert 0 in counts  # a class without samples is counted too


def test_byte_ranges_and_pointers_lead_to_the_stored_bytes(written: Written) -> None:
    index, data = written.index, written.path.read_bytes()
    for number, stored in enumerate(written.stored):
        extents = index.extents([number])
        assert extents["sample_id"].tolist() == [number] * len(stored)
        assert [data[ptr : ptr + size] for _, ptr, size in extents.tolist()] == [*stored.values()]
        for name, expected in stored.items():
            entry = index.column(name)[number]
            if entry.dtype.names:
                entry = entry["data_ptr" if "data_ptr" in entry.dtype.names else "ptr"]
            assert data[int(entry) : int(entry) + len(expected)] == expected
    expected_sums = [sum(map(len, stored.values())) for stored in written.stored]
    assert index.sample_bytes().tolist() == expected_sums


@pytest.mark.parametrize("ids", [[], [7], [5, 0, 23], [3, 3, 1], list(range(23, -1, -1)), [2, 9]])
def test_byte_ranges_come_in_the_order_of_the_ids(written: Written, ids: list[int]) -> None:
    table = written.index.allocations.tolist()
    expected = [row for number in ids for row in table if row[0] == number]
    assert written.index.extents(ids).tolist() == expected


def test_byte_ranges_may_be_listed_in_any_order(tiny: Path) -> None:
    expected = BetonIndex.open(tiny).extents([4, 0, 5]).tolist()
    with damage(tiny) as parts:
        parts.table[:] = parts.table[[3, 5, 0, 1, 4, 2]]
    assert BetonIndex.open(tiny).extents([4, 0, 5]).tolist() == expected


def test_the_page_table_lists_the_samples_of_every_page(written: Written) -> None:
    index = written.index
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


def test_an_open_index_is_used_as_it_is(tiny: Path) -> None:
    index = BetonIndex.of(tiny)
    assert BetonIndex.of(index) is index
    assert repr(index) == (
        f"BetonIndex({str(tiny)!r}, num_samples=6, fields=(image: rgb_image, label: int))"
    )


def test_empty_bytes_of_a_first_sample_are_accepted(tmp_path: Path) -> None:
    """ffcv places empty bytes before its first page, at byte 0."""
    samples = [(np.zeros(size, dtype=np.uint8), 0) for size in (0, 4, 0)]
    path = write_stock(tmp_path / "a.beton", samples, {"blob": BytesField(), "label": IntField()})
    index = BetonIndex.open(path)
    assert index.extents([0])["ptr"].tolist() == [0]
    assert index.sample_bytes().tolist() == [0, 4, 0]


def test_a_beton_of_numbers_alone_is_accepted(tmp_path: Path) -> None:
    path = write_stock(
        tmp_path / "a.beton", [(1, 0.5), (0, 2.5)], {"a": IntField(), "b": FloatField()}
    )
    index = BetonIndex.open(path)
    assert index.labels("a").tolist() == [1, 0]
    assert index.extents([1, 0]).tolist() == []
    assert index.sample_bytes().tolist() == [0, 0]
    assert [part.tolist() for part in index.page_table] == [[], [0], []]


def test_a_custom_field_may_store_no_bytes(stamps: dict[str, Any], tmp_path: Path) -> None:
    write_beton(tmp_path / "b.beton", **stamps, seed=None)
    for path in (write_stock(tmp_path / "a.beton", **stamps), tmp_path / "b.beton"):
        index = BetonIndex.open(path, custom_fields={"stamp": type(stamps["fields"]["stamp"])})
        assert index.sample_bytes().tolist() == [0, 5] * 3
        assert index.column("stamp")["size"].tolist() == [0, 5] * 3
        assert index.column("stamp")["ptr"].tolist()[::2] == [0, 0, 0]
        assert index.extents([1, 0, 3])["sample_id"].tolist() == [1, 3]


# Fingerprints.


def set_label(parts: Parts) -> None:
    parts.metadata["f1"][4] = 2


def test_the_fingerprint_depends_on_the_tables_and_not_on_the_path(
    tiny: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "other" / "name.beton"
    copy.parent.mkdir()
    shutil.copyfile(tiny, copy)
    fingerprints = [BetonIndex.open(tiny).fingerprint]
    assert BetonIndex.open(copy).fingerprint == fingerprints[0]
    assert len(fingerprints[0]) == 64
    assert set(fingerprints[0]) <= set("0123456789abcdef")
    changes: list[Callable[[Parts], Any]] = [
        set_label,
        lambda parts: parts.table.__setitem__(slice(2), parts.table[[1, 0]]),
        lambda parts: parts.descriptors["name"][0].__setitem__(slice(6), list(b"photo\0")),
        lambda parts: parts.header.__setitem__("page_size", 1 << 22),
    ]
    for change in changes:
        with damage(tiny) as parts:
            change(parts)
        fingerprints.append(BetonIndex.open(tiny).fingerprint)
    assert len(set(fingerprints)) == 5
    assert BetonIndex.open(tiny).labels().tolist() == [0, 1, 2, 0, 2, 2]


# Fields, labels and indices.


def test_the_error_for_a_missing_field_lists_the_fields(tiny: Path) -> None:
    index = BetonIndex.open(tiny)
    for method in (index.field, index.column, index.labels, index.class_counts):
        with pytest.raises(BetonError, match=r"no field 'target'. Its fields are image, label\."):
            method("target")


def test_labels_of_another_kind_and_negative_ones_are_rejected(
    written: Written, tmp_path: Path
) -> None:
    for field in ("score", "photo", "vector", "stamp", "hash"):
        message = rf"field '{field}' .* holds no class ids; its kind is"
        with pytest.raises(BetonError, match=message):
            written.index.labels(field)
    path = write_stock(tmp_path / "a.beton", [(3,), (-1,)], {"label": IntField()})
    with pytest.raises(BetonError, match=r"field 'label' .* holds the negative class id -1"):
        BetonIndex.open(path).labels()


@pytest.mark.parametrize("label", [1 << 20, 10**8, 10**12, 2**63 - 1])
def test_a_label_too_large_for_a_class_id_is_rejected(label: int, tiny: Path) -> None:
    """Arrays over the classes would take far more memory than the file."""
    with damage(tiny) as parts:
        parts.metadata["f1"][4] = label
    index = BetonIndex.open(tiny)
    message = rf"tiny.beton' holds the value {label}, too large .* below 1048576\. Name"
    asked: list[Callable[[], Any]] = [
        index.labels,
        index.class_counts,
        index.summary,
        lambda: index.num_classes,
        lambda: Selection.of_indices(index, [0]),
    ]
    for ask in asked:
        with pytest.raises(BetonError, match=message):
            ask()
    assert index.column("label")[4] == label
    assert [(each.kind, each.sample_id) for each in verify(tiny).problems] == [("label", 4)]


def test_as_many_classes_as_samples_or_names_are_accepted(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MOST_CLASSES", 3)
    with damage(tiny) as parts:
        parts.metadata["f1"][4] = 5
    assert BetonIndex.open(tiny).num_classes == 6
    with damage(tiny) as parts:
        parts.metadata["f1"][4] = 6
    with pytest.raises(BetonError, match=r"the value 6, too large .* class ids are below 6\."):
        BetonIndex.open(tiny).labels()
    index = BetonIndex.open(tiny)
    names = tuple("abcdefg")
    with new_manifest(tiny, Manifest(fields={}, num_samples=6, class_names=names)):
        pass
    assert index.num_classes == 7


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 6], ValueError, r"^`indices` must lie in \[0, 6\); got values from 0 to 6\. Check"),
        ([-1], ValueError, r"^`indices` must lie in \[0, 6\)"),
        ([True] * 6, TypeError, r"^`indices` must be integers; .*np\.flatnonzero"),
        ([0.0], TypeError, "^`indices` must be integers; got dtype float64"),
        (["0"], TypeError, "^`indices` must be integers"),
        ([[0, 1]], ValueError, r"^`indices` must have shape \(N,\); got \(1, 2\)"),
        (3, ValueError, r"^`indices` must have shape \(N,\); got \(\)"),
        (np.array([2**63], dtype=np.uint64), ValueError, "^`indices` must lie in"),
    ],
)
def test_bad_indices_are_rejected(
    tiny: Path, indices: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BetonIndex.open(tiny).extents(indices)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{}",
        b"null",
        b"[" * 100_000,
        {"num_samples": 2.0},
        {"num_samples": True},
        {"num_samples": float("nan")},
        {"class_counts": [float("inf")]},
        {"class_names": "ab"},
        {"class_names": [1]},
        {"fields": {"label": 3}},
        {"fields": [["label", "int"]]},
        {"skipped": [[]]},
        {"written_by": None},
        {"fingerprint": 7},
        {"tool": None},
    ],
    ids=str,
)
def test_a_damaged_manifest_is_an_error_that_names_it(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    write_beton(path, [(1,), (0,)], {"label": IntField()}, seed=None)
    if isinstance(content, dict):
        content = json.dumps({**json.loads(manifest_path(path).read_bytes()), **content}).encode()
    manifest_path(path).write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.beton\.json' is not a beton's manifest"):
        read_manifest(path)


def test_the_manifest_may_name_more_classes_than_have_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    write_beton(path, [(1,), (0,)], {"label": IntField()}, class_names=["a", "b", "c"], seed=None)
    index = BetonIndex.open(path)
    assert index.num_classes == 3
    assert index.class_counts().tolist() == [1, 1, 0]


# Files that are not betons, or not complete.


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
def test_another_file_is_rejected(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    with pytest.raises(FileNotFoundError):
        BetonIndex.open(path)
    path.write_bytes(content)
    with pytest.raises(BetonError, match=REJECTED):
        BetonIndex.open(path)


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_what_is_no_regular_file_is_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    {"FIFO": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](
        path
    )
    for read in (BetonIndex.open, verify, lambda p: compact(p, None, tmp_path / "b.beton")):
        with pytest.raises(OSError, match=r"a\.beton'"):
            read(path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_unfinished_file_of_ffcvs_writer_is_rejected(tmp_path: Path) -> None:
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
        *(("version", version, f"version is {version}, not 2") for version in (0, 1, 3, 65535)),
        ("alloc_table_ptr", 0, "is unfinished"),
        ("alloc_table_ptr", 8, "is truncated or corrupt"),
        ("alloc_table_ptr", TABLES_START, "is truncated or corrupt"),
        ("alloc_table_ptr", MAX, "is truncated or corrupt"),
        ("num_fields", 0, "is not a beton"),
        ("num_fields", 3, REJECTED),
        ("num_fields", 65535, REJECTED),
        ("num_samples", 0, "bytes of sample 5, but has 0"),
        ("num_samples", 5, "bytes of sample 5, but has 5"),
        ("num_samples", 7, "sample 6"),
        ("num_samples", 2**40, "is truncated or corrupt"),
        ("num_samples", MAX, "is truncated or corrupt"),
        ("page_size", 0, "is not a beton"),
        ("page_size", 3 << 20, "is not a beton"),
    ],
)
def test_a_corrupt_header_is_rejected(name: str, value: int, message: str, tiny: Path) -> None:
    with damage(tiny) as parts:
        parts.header[name] = value
    with pytest.raises(BetonError, match=message):
        BetonIndex.open(tiny)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("type_id", "unknown type 200"),
        ("name", "is not a beton"),
        ("pointer", "sample 4 points to no stored by"),
    ],
)
def test_a_corrupt_descriptor_or_pointer_is_rejected(part: str, message: str, tiny: Path) -> None:
    with damage(tiny) as parts:
        if part == "pointer":
            parts.metadata["f0"]["data_ptr"][4] += 1
        else:
            parts.descriptors[part].reshape(2, -1)[0, 0] = 200
    with pytest.raises(BetonError, match=message):
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
def test_bytes_outside_of_the_data_are_rejected(values: dict[str, int], tiny: Path) -> None:
    with damage(tiny) as parts:
        for name, value in values.items():
            parts.table[name][2] = value
    found = "(bytes of sample 2 are outside of the data region|bytes of sample [0-9]+, but has 6)"
    with pytest.raises(BetonError, match=f"is truncated or corrupt: .*{found}"):
        BetonIndex.open(tiny)


def test_a_beton_truncated_or_extended_is_rejected(tiny: Path) -> None:
    whole = tiny.read_bytes()
    table_at = int(BetonIndex.open(tiny).header["alloc_table_ptr"])
    between = np.random.default_rng(3).integers(0, table_at, 100).tolist()
    cuts = {*range(TABLES_START + 200), *between, *range(table_at - 50, len(whole)), len(whole) + 1}
    with tiny.open("r+b") as stream:
        for size in sorted(cuts, reverse=True):
            stream.truncate(size)
            with pytest.raises(BetonError, match=REJECTED):
                BetonIndex.open(tiny)


def test_a_custom_field_needs_its_class_and_others_may_have_one(
    written: Written, tiny: Path
) -> None:
    for given in ({}, {"hash": None}):
        with pytest.raises(BetonError, match=r"has the custom field 'stamp'.*`custom_fields`"):
            BetonIndex.open(written.path, custom_fields=given)
    index = BetonIndex.open(tiny, custom_fields={"image": RGBImageField})
    assert index.metadata.tobytes() == BetonIndex.open(tiny).metadata.tobytes()


# The allocation table can be released.


def test_a_released_table_is_read_again(written: Written) -> None:
    index, whole = written.index, written.index
    index.release_allocations()
    index.release_allocations()
    assert index.allocations.tobytes() == whole.allocations.tobytes()
    assert not index.allocations.flags.writeable
    assert index.allocations is index.allocations
    for ask in (
        lambda index: index.fingerprint,
        lambda index: index.extents([3, 3, 1]).tobytes(),
        lambda index: index.sample_bytes().tobytes(),
        lambda index: [part.tobytes() for part in index.page_table],
    ):
        index.release_allocations()
        assert ask(index) == ask(whole)


def test_a_released_table_of_a_replaced_beton_is_rejected(tiny: Path, tmp_path: Path) -> None:
    index = BetonIndex.open(tiny)
    fingerprint = index.fingerprint
    index.release_allocations()
    with damage(tiny) as parts:
        set_label(parts)
    with pytest.raises(BetonError, match=r"tiny.* was replaced by another beton"):
        _ = index.allocations
    write_beton(tmp_path / "other.beton", [(1,), (0,)], {"label": IntField()})
    shutil.copyfile(tmp_path / "other.beton", tiny)
    with pytest.raises(BetonError, match="was replaced by another beton"):
        _ = index.allocations
    tiny.unlink()
    with pytest.raises(FileNotFoundError):
        _ = index.allocations
    assert index.labels().tolist() == [0, 1, 2, 0, 1, 2]  # needs no allocations
    assert index.fingerprint == fingerprint
