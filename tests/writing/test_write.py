"""`write_beton`: the same bytes for any number of workers, read by stock ffcv, all or nothing."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import (
    BytesField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
)
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from numpy.typing import NDArray

from dp4tl_ffcv import (
    BetonIndex,
    Manifest,
    Selection,
    compact,
    image_fields,
    verify,
    write_beton,
)
from dp4tl_ffcv.beton import read_manifest
from dp4tl_ffcv.kernels import resize_area
from dp4tl_ffcv.utils import finish_manifest
from dp4tl_ffcv.writing.encode import Batch, Tasks
from tests.support.betons import PAGE_SIZE, OpaqueField, read_with_ffcv
from tests.support.blobs import FIELDS, ORDER, Blobs, write_blobs

LABEL = {"label": IntField()}


class Uneven(list[Any]):
    """Samples of which every third is slow to read, so that workers finish out of order."""

    def __getitem__(self, index: Any) -> Any:
        time.sleep(0.004 * (index % 3 == 0))
        return super().__getitem__(index)


class Failing(list[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> Any:
        return index // 0


class Named(list[Any]):
    name = "a data set"  # not a method


def blob_of(size: int) -> NDArray[np.uint8]:
    return np.full(size, size % 251, dtype=np.uint8)


def blobs(*sizes: int) -> list[tuple[Any, ...]]:
    return [(blob_of(size), number) for number, size in enumerate(sizes)]


# The bytes of the file.


def test_the_file_does_not_depend_on_the_workers(
    tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    samples = Uneven(
        (picture[: 100 + number], number % 4, number) for number, picture in enumerate(pictures)
    )
    files = []
    for workers in (0, 1, 4):
        path = tmp_path / f"{len(files)}.beton"
        write_beton(path, samples, image_fields(), page_size=PAGE_SIZE, num_workers=workers)
        files.append(path.read_bytes())
    assert files[1:] == files[:1] * 2


def test_samples_are_stored_in_order_and_cross_no_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    fields = {"a": BytesField(), "b": BytesField()}
    sizes = rng.integers(0, PAGE_SIZE // 3, (40, 2)).tolist()
    samples = [tuple(blob_of(size) for size in pair) for pair in sizes]
    index = write_beton(tmp_path / "a.beton", samples, fields, page_size=PAGE_SIZE, seed=None)
    table = index.allocations
    assert table["sample_id"].tolist() == [number for number in range(40) for _ in range(2)]
    assert table["size"].tolist() == [size for pair in sizes for size in pair]
    assert (np.diff(table["ptr"].astype(np.int64)) > 0).all()
    first, last = table["ptr"][::2], (table["ptr"] + table["size"])[1::2] - np.uint64(1)
    assert (first // PAGE_SIZE == np.maximum(first, last) // PAGE_SIZE).all()
    assert verify(index).is_sound
    pages, _, _ = index.page_table
    assert len(pages) > 10
    assert pages.min() == 1  # page 0 holds the tables
    assert int(index.header["alloc_table_ptr"]) % PAGE_SIZE == 0


def test_no_two_byte_ranges_start_at_the_same_byte(tmp_path: Path) -> None:
    """ffcv finds the size of a byte range by its start."""
    sizes = [(0, 3), (0, 0), (PAGE_SIZE - 1, 0)]
    samples = [tuple(blob_of(size) for size in pair) for pair in sizes]
    fields = {"a": BytesField(), "b": BytesField()}
    index = write_beton(tmp_path / "a.beton", samples, fields, page_size=PAGE_SIZE, seed=None)
    assert index.allocations["size"].tolist() == [0, 3, 0, 0, PAGE_SIZE - 1, 0]
    assert len(set(index.allocations["ptr"].tolist())) == 6


def stored_blobs(index: BetonIndex) -> list[bytes]:
    data = index.path.read_bytes()
    return [data[ptr : ptr + size] for _, ptr, size in index.allocations.tolist()]


# Stock ffcv reads the file.


@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_the_same_samples(
    os_cache: bool, tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    path = tmp_path / "a.beton"
    samples = [(blob_of(n % 4), picture, 7 * n % 10) for n, picture in enumerate(pictures)]
    fields = {"note": BytesField(), "image": RGBImageField(write_mode="raw"), **LABEL}
    index = write_beton(path, samples, fields, page_size=PAGE_SIZE, seed=None)
    assert len(index.page_table[0]) > 1
    rows = read_with_ffcv(path, os_cache)
    for row, (note, picture, label) in zip(rows, samples, strict=True):
        assert row["note"][: len(note)].tolist() == note.tolist()
        np.testing.assert_array_equal(row["image"], picture)
        assert row["label"].tolist() == [label]


@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_pages_that_grew(os_cache: bool, tmp_path: Path) -> None:
    """On a page that grew, the first sample may follow the tables."""
    rng = np.random.default_rng(0)
    shapes = [(40, 30, 3)] * 5 + [(1700, 1700, 3)] + [(50, 20, 3)] * 5
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    samples = [(image, number, 0) for number, image in enumerate(images)]
    path = tmp_path / "a.beton"
    index = write_beton(path, samples, image_fields(mode="raw"), num_workers=0)
    assert index.page_size == 16 << 20
    assert int(index.allocations["ptr"].min()) < index.page_size
    rows = read_with_ffcv(path, os_cache, image=CenterCropRGBImageDecoder((20, 20), 1))
    assert len(rows) == len(images)
    for row in rows:
        image = images[int(row["label"][0])]
        height, width = image.shape[:2]
        # ffcv crops a square of the shorter side, and shrinks it.
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        expected = resize_area(image, (20, 20), (top, left, side, side))
        assert np.abs(row["image"].astype(int) - expected).max() <= 1


# Samples that fail.


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (Blobs(20, errors={7: OSError("disk gone")}), "blob 7: disk gone"),
        (Blobs(20, errors={7: KeyError("x")}), "blob 7: KeyError"),
        ([*blobs(1, 2, 3), (blob_of(1),)], "sample 3: 1 values for 2 fields"),
        ([*blobs(1, 2), (blob_of(1), "x")], "sample 2: "),
        (Named([*blobs(1, 2), (blob_of(1), "x")]), "sample 2: "),
    ],
    ids=["disk", "key", "short", "label", "named"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_sample_is_named_and_leaves_nothing(
    samples: Any, message: str, workers: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^Cannot encode {message}"):
        write_beton(tmp_path / "a.beton", samples, FIELDS, num_workers=workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_listed_with_their_errors(workers: int, tmp_path: Path) -> None:
    samples = Blobs(failing=[0, 17, 18, 300], errors={3: KeyError("x"), 4: RuntimeError()})
    index = write_blobs(tmp_path / "a.beton", samples, on_error="skip", num_workers=workers)
    texts = {n: f"no sample {n}" for n in (0, 17, 18, 300)}
    texts |= {3: "KeyError: 'x'", 4: "RuntimeError: "}
    assert sorted(index.manifest.skipped, key=lambda each: each["sample"]) == [
        {"sample": number, "name": f"blob {number}", "error": texts[number]}
        for number in sorted(texts)
    ]
    kept = [number for number in ORDER.tolist() if number not in texts]
    assert index.labels().tolist() == [number % 7 for number in kept]
    assert sum(index.manifest.class_counts) == len(kept)


def test_samples_are_not_skipped_if_all_fail_or_memory_is_lacking(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Cannot encode blob"):
        write_blobs(tmp_path / "a.beton", Blobs(20, failing=range(20)), on_error="skip")
    samples = Blobs(errors={3: MemoryError()})
    with pytest.raises(MemoryError, match="no memory for sample 3"):
        write_blobs(tmp_path / "a.beton", samples, on_error="skip", num_workers=2)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_may_fill_a_page_and_a_larger_one_is_named(tmp_path: Path) -> None:
    samples = blobs(PAGE_SIZE, PAGE_SIZE + 1, 5)
    message = f"^Sample 1 has {PAGE_SIZE + 1} bytes and does not fit into a page"
    with pytest.raises(ValueError, match=message):
        write_blobs(tmp_path / "a.beton", samples, seed=None)
    assert list(tmp_path.iterdir()) == []
    for page_size, stored in ((PAGE_SIZE, samples[::2]), (2 * PAGE_SIZE, samples)):
        index = write_blobs(tmp_path / "a.beton", stored, page_size=page_size, seed=None)
        assert stored_blobs(index) == [blob.tobytes() for blob, _ in stored]


def test_pages_grow_until_the_largest_sample_fits(tmp_path: Path) -> None:
    samples = blobs(10, 9_000_000, 20, 17_000_000, 30, 8_000_000)
    index = write_beton(tmp_path / "a.beton", samples, FIELDS, seed=None, num_workers=2)
    assert index.page_size == 32 << 20
    assert verify(index).is_sound
    assert stored_blobs(index) == [blob.tobytes() for blob, _ in samples]


def test_large_samples_make_small_batches() -> None:
    """The memory of waiting batches is bounded in bytes."""
    tasks, lengths = Tasks(np.arange(1000)), []
    dealt = iter(tasks)
    for size in [1000] * 3 + [1 << 20] * 3 + [40 << 20] * 3 + [1000] * 2:
        number, numbers = next(dealt)
        count = len(numbers)
        assert number == len(lengths)
        assert numbers.tolist() == list(range(sum(lengths), sum(lengths) + count))
        lengths.append(count)
        ones, sizes = np.ones(count, dtype=np.int64), np.full(count, size)
        tasks.adapt(Batch(numbers.tolist(), np.zeros(count), ones, sizes, None, []))
    assert lengths == [1, 16, 16, 16, 7, 7, 7, 1, 1, 1, 16]


@pytest.mark.parametrize(
    ("samples", "names", "message"),
    [
        (Blobs(9, failing=[7]), "", "Cannot encode blob 7"),
        ([(blob_of(1), -3)], "ab", r"sample 0: the class id -3 is not in \[0, 1048576\)"),
        ([(blob_of(1), 1 << 20)], "", r"not in \[0, 1048576\).* or pass label_field='' if"),
        ([(blob_of(1), 2)], "ab", "class id 2 of sample 0 has no name: `class_names` has 2"),
    ],
    ids=["sample", "negative", "too large", "no name"],
)
def test_a_failure_leaves_an_existing_beton_as_it_was(
    samples: Any, names: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.beton"
    write_blobs(path, blobs(4, 5), class_names="ab")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == ["a.beton", "a.beton.json"]
    with pytest.raises(ValueError, match=message):
        write_blobs(path, samples, class_names=names)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# Bad arguments.


@pytest.mark.parametrize("name", ["a", "x" * 16, "a b", "~"])
def test_good_field_names_come_back(tmp_path: Path, name: str) -> None:
    fields, path = {name: IntField()}, tmp_path / "a.beton"
    index = write_beton(path, [(5,)], fields, label_field="", num_workers=0)
    assert [field.name for field in BetonIndex.open(path).fields] == [name]
    assert index.column(name).tolist() == [5]


@pytest.mark.parametrize(
    ("samples", "fields", "options", "message"),
    [
        ([], LABEL, {}, "^`samples` is empty"),
        ([()], {}, {}, "^`fields` is empty"),
        *(
            ([(1,)], {"label": field}, {}, "^`label_field` must name an IntField; 'label' is a")
            for field in (JSONField(), NDArrayField(np.dtype("<i8"), (1,)))
        ),
        *(
            ([(1, 2)], {**LABEL, name: IntField()}, {}, "^Field names must have 1 to 16 printable")
            for name in ("", "x" * 17, "é", "a\0b", "\x1b[31m", "\x7f")
        ),
        *(
            ([(1,)], LABEL, {"page_size": size}, "^`page_size` must be a power of two from 2 MiB")
            for size in (0, 1 << 20, 3 << 20, 1 << 32)
        ),
        ([(1,)], LABEL, {"num_workers": -1}, "`num_workers` must be at least 0; got -1"),
        ([(1,)], LABEL, {"seed": -1}, "`seed` must be at least 0; got -1"),
        ([(1,)], LABEL, {"on_error": "ignore"}, "`on_error` must be one of raise, skip; got"),
    ],
)
def test_bad_arguments_are_rejected_before_anything_is_written(
    samples: Any, fields: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_beton(tmp_path / "new" / "a.beton", samples, fields, **options)
    assert list(tmp_path.iterdir()) == []


# The manifest.


def test_the_manifest_describes_the_beton(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.beton"
    options = {"root": "images", "quality": 90, "parts": [1, 2]}
    names = ["zero", "eins", "zwei, drei", "vier"]
    samples = [(blob_of(3), label) for label in (2, 0, 2)]
    index = write_beton(path, samples, FIELDS, class_names=names, written_by=options)
    manifest = read_manifest(path)
    assert manifest == index.manifest == BetonIndex.open(path).manifest
    assert isinstance(manifest, Manifest)
    assert manifest.fields == {"blob": "bytes", "label": "int"}
    assert list(manifest.fields) == ["blob", "label"]
    assert manifest.num_samples == 3
    assert manifest.class_names == tuple(names)
    assert manifest.class_counts == (1, 0, 2, 0)
    assert manifest.written_by == options
    assert manifest.fingerprint == index.fingerprint
    assert manifest.tool.startswith("dp4tl_ffcv ")


def test_the_manifest_counts_the_classes_of_the_label_field(tmp_path: Path) -> None:
    fields = {"label": IntField(), "kind": IntField()}
    for label_field, counts in {"kind": (0, 2), "none": ()}.items():
        path = tmp_path / f"{label_field}.beton"
        samples = [(0, 1), (0, 1)]
        index = write_beton(path, samples, fields, label_field=label_field, num_workers=0)
        assert index.manifest.class_counts == counts


def test_a_manifest_that_is_missing_or_of_another_beton_is_ignored(tmp_path: Path) -> None:
    path, other = tmp_path / "a.beton", tmp_path / "b.beton"
    write_beton(path, [(0,), (1,)], LABEL, class_names=["a", "b", "c"], num_workers=0)
    write_beton(other, [(1,), (0,)], LABEL, num_workers=0)
    other.replace(path)
    assert read_manifest(path) is not None
    for index in (BetonIndex.open(path), BetonIndex.open(path)):
        assert index.manifest is None
        assert index.num_classes == 2
        (tmp_path / "a.beton.json").unlink(missing_ok=True)
    assert read_manifest(path) is None


@pytest.mark.parametrize("make", ["write", "compact"])
def test_a_kill_between_renames_leaves_every_beton_its_class_names(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source.beton", tmp_path / "out" / "a.beton"
    write_beton(source, [(0,), (1,), (1,)], LABEL, class_names=["owl", "eel"], num_workers=0)
    write_beton(target, [(0,), (1,)], LABEL, class_names=["cat", "dog"], num_workers=0)
    names = {2: ("cat", "dog"), 3: ("owl", "eel")}
    seen, snapshots = [], list[Path]()
    rename = Path.replace

    def replace(part: Path, path: Path) -> Path:
        try:
            return rename(part, path)
        finally:
            killed = tmp_path / str(len(seen)) / "a.beton"
            shutil.copytree(target.parent, killed.parent)
            index = BetonIndex.open(killed)
            assert index.class_names() == names[len(index)]
            seen.append(len(index))
            snapshots.append(killed)

    monkeypatch.setattr(Path, "replace", replace)
    if make == "write":
        samples = [(0,), (1,), (1,)]
        write_beton(target, samples, LABEL, class_names=["owl", "eel"], num_workers=0)
    else:
        compact(source, Selection.of_indices(source, range(3)), target)
    assert seen[-2:] == [3, 3]
    monkeypatch.undo()
    for killed, count in zip(snapshots, seen, strict=True):
        with pytest.raises(ValueError, match="Cannot encode"):  # a second run that fails
            write_beton(killed, Failing(), LABEL, class_names=["x"], num_workers=0)
        assert not verify(killed).problems
        (killed.parent / "moved").mkdir()
        for path in (killed, killed.with_name("a.beton.json")):
            path.rename(killed.parent / "moved" / path.name)
        moved = BetonIndex.open(killed.parent / "moved" / "a.beton")
        assert moved.class_names() == names[count]
    assert sorted(path.name for path in target.parent.iterdir()) == ["a.beton", "a.beton.json"]


def test_a_manifest_belongs_to_the_pixels_not_only_to_the_tables(tmp_path: Path) -> None:
    dark, light = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    fields = image_fields(mode="raw")
    paths = [tmp_path / "a.beton", tmp_path / "b.beton"]
    for path, image in zip(paths, (dark, light), strict=True):
        samples = [(image, label, label) for label in (0, 1)]
        write_beton(path, samples, fields, class_names=["cat", "dog"], num_workers=0)
    one, other = map(BetonIndex.open, paths)
    assert one.fingerprint == other.fingerprint
    paths[1].replace(paths[0])
    index = BetonIndex.open(paths[0])
    assert index.class_names() == ()
    # A writer that was killed before it renamed its beton left the manifest of another one.
    paths[0].with_name(".a.beton.json.part").write_bytes(
        paths[0].with_name("a.beton.json").read_bytes()
    )
    finish_manifest(paths[0])
    assert BetonIndex.open(paths[0]).class_names() == ()
    assert "written for another beton" in str(verify(paths[0]).problems)
    assert not paths[0].with_name(".a.beton.json.part").exists()


@pytest.mark.parametrize("content", [b"", b"{"], ids=["empty", "half"])
def test_half_a_manifest_of_a_killed_writer_is_removed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    write_beton(path, [(0,), (1,)], LABEL, class_names=["cat", "dog"], num_workers=0)
    path.with_name(".a.beton.json.part").write_bytes(content)
    finish_manifest(path)
    assert BetonIndex.open(path).class_names() == ("cat", "dog")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.beton", "a.beton.json"]
    complete = path.with_name("a.beton.json").rename(path.with_name(".a.beton.json.part"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])  # whose manifest it is cannot be known
    finish_manifest(path)
    assert complete.exists()
    path.write_bytes(whole)
    finish_manifest(path)
    assert BetonIndex.open(path).class_names() == ("cat", "dog")
    assert not complete.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda _: b"\xff\xfe\x80",
        lambda _: b"[1, 2]",
        lambda content: content.replace(b"class_names", b"names"),
    ],
    ids=["cut", "binary", "list", "entry"],
)
def test_a_corrupt_manifest_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path, manifest = tmp_path / "a.beton", tmp_path / "a.beton.json"
    index = write_beton(path, [(0,)], LABEL, num_workers=0)
    manifest.write_bytes(damage(manifest.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.beton\.json.* is not a beton's manifest"):
        _ = index.manifest


class SignedField(OpaqueField):
    """Three bytes whose offset is stored as a signed number."""

    metadata_type = np.dtype("<i8")

    def encode(self, destination: Any, value: bytes, malloc: Any) -> None:
        destination[0], storage = malloc(3)
        storage[:] = np.frombuffer(value, dtype=np.uint8)


def test_an_offset_may_be_stored_as_a_signed_number(tmp_path: Path) -> None:
    samples = [(bytes([number] * 3),) for number in range(9)]
    fields = {"signed": SignedField()}
    index = write_beton(tmp_path / "a.beton", samples, fields, seed=None, num_workers=0)
    data = index.path.read_bytes()
    assert [(data[place : place + 3],) for place in index.column("signed")] == samples
