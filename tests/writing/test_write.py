"""`write_beton`: the same bytes for any number of workers, read by stock ffcv, all or nothing."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import (
    BytesField,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
)
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.fields.basics import IntDecoder
from ffcv.fields.bytes import BytesDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, Manifest, image_fields, write_beton
from dp4tl_ffcv.utils import read_manifest

PAGE_SIZE = 1 << 21
LABEL = {"label": IntField()}
BLOB = {"blob": BytesField(), "label": IntField()}


class Uneven(Sequence[Any]):
    """Samples of which every third takes long, so that workers finish out of order."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        time.sleep(0.004 * (index % 3 == 0))
        return self.samples[index]


class Failing(Sequence[Any]):
    """Samples of which number 7 raises an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: Any) -> Any:
        if index == 7:
            raise self.error
        return (np.zeros(9, dtype=np.uint8), 1)


def blob_of(size: int) -> NDArray[np.uint8]:
    return np.full(size, size % 251, dtype=np.uint8)


def blobs(*sizes: int) -> list[tuple[Any, ...]]:
    return [(blob_of(size), number) for number, size in enumerate(sizes)]


# The bytes of the file.


def test_the_file_does_not_depend_on_the_workers(
    tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    samples = [
        (picture[: 100 + number], number % 4, number) for number, picture in enumerate(pictures)
    ]
    files = []
    for workers in (1, 4, 4, None):
        path = tmp_path / f"{len(files)}.beton"
        fields = image_fields(jpeg_quality=95)
        write_beton(path, Uneven(samples), fields, page_size=PAGE_SIZE, num_workers=workers)
        files.append(path.read_bytes())
    assert files[1:] == files[:1] * 3


def test_samples_lie_in_their_order_and_cross_no_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    fields = {"a": BytesField(), "b": BytesField()}
    sizes = rng.integers(0, PAGE_SIZE // 3, (40, 2)).tolist()
    samples = [tuple(blob_of(size) for size in pair) for pair in sizes]
    index = write_beton(tmp_path / "a.beton", samples, fields, page_size=PAGE_SIZE, seed=None)
    table = index.allocations
    assert table["sample_id"].tolist() == [number for number in range(40) for _ in range(2)]
    assert table["size"].tolist() == [size for pair in sizes for size in pair]
    starts, ends = table["ptr"].astype(np.int64), (table["ptr"] + table["size"]).astype(np.int64)
    assert (starts[1:] >= ends[:-1]).all()
    assert (starts[::2] // PAGE_SIZE == np.maximum(starts, ends - 1)[1::2] // PAGE_SIZE).all()
    pages, _, _ = index.page_table
    assert len(pages) > 10
    assert pages.min() == 1  # page 0 holds the tables
    assert int(index.header["alloc_table_ptr"]) % PAGE_SIZE == 0


def test_no_two_extents_start_at_the_same_byte(tmp_path: Path) -> None:
    """The size of an extent is found by its start in ffcv."""
    sizes = [(0, 3), (0, 0), (PAGE_SIZE - 1, 0)]
    samples = [tuple(blob_of(size) for size in pair) for pair in sizes]
    fields = {"a": BytesField(), "b": BytesField()}
    index = write_beton(tmp_path / "a.beton", samples, fields, page_size=PAGE_SIZE, seed=None)
    assert index.allocations["size"].tolist() == [0, 3, 0, 0, PAGE_SIZE - 1, 0]
    assert len(set(index.allocations["ptr"].tolist())) == 6


@pytest.mark.parametrize("spare", [0, 1])
def test_a_sample_may_fill_a_page(spare: int, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    samples = blobs(PAGE_SIZE - spare, PAGE_SIZE - spare, 5)
    index = write_beton(path, samples, BLOB, page_size=PAGE_SIZE, seed=None)
    starts = index.allocations["ptr"].astype(np.int64)
    assert (starts // PAGE_SIZE).tolist() == [1, 2, 3]
    data = path.read_bytes()
    for number, start in enumerate(starts.tolist()):
        expected = samples[number][0].tobytes()
        assert data[start : start + len(expected)] == expected


def test_a_beton_without_extents_is_written(tmp_path: Path) -> None:
    index = write_beton(tmp_path / "a.beton", [(3,), (1,)], LABEL, seed=None)
    assert index.labels().tolist() == [3, 1]
    assert len(index.allocations) == 0


def test_image_fields_write_what_they_say(tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    samples = [(picture, 0, number) for number, picture in enumerate(pictures[:3])]
    sizes = {}
    for name, options in {
        "raw": {"mode": "raw"},
        "fine": {"jpeg_quality": 100},
        "coarse": {"jpeg_quality": 20},
        "small": {"mode": "raw", "max_resolution": 100},
    }.items():
        index = write_beton(tmp_path / f"{name}.beton", samples, image_fields(**options))
        assert [field.name for field in index.fields] == ["image", "label", "identifier"]
        sizes[name] = index.sample_bytes()[0]
        assert index.column("image")["height"][0] == (100 if name == "small" else 200)
    assert sizes["raw"] == 200 * 180 * 3
    assert sizes["small"] == 100 * 90 * 3
    assert sizes["fine"] > 2 * sizes["coarse"]


def test_an_unknown_image_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="`mode` must be one of jpg, raw; got 'png'"):
        image_fields(mode="png")


# Stock ffcv reads the file.


@pytest.mark.parametrize("os_cache", [True, False])
def test_the_stock_loader_reads_it(
    os_cache: bool, tmp_path: Path, pictures: NDArray[np.uint8]
) -> None:
    path = tmp_path / "a.beton"
    notes = [blob_of(number % 4) for number in range(len(pictures))]
    labels = [(7 * number) % 10 for number in range(len(pictures))]
    fields = {
        "note": BytesField(),
        "image": RGBImageField(write_mode="raw"),
        "label": IntField(),
    }
    samples = list(zip(notes, pictures, labels, strict=True))
    index = write_beton(path, samples, fields, page_size=PAGE_SIZE, seed=None)
    assert len(index.page_table[0]) > 1
    loader = Loader(
        str(path),
        batch_size=8,
        num_workers=1,
        os_cache=os_cache,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={
            "note": [BytesDecoder()],
            "image": [SimpleRGBImageDecoder()],
            "label": [IntDecoder()],
        },
    )
    read = 0
    for note, images, ids in loader:
        for row in range(len(ids)):
            assert ids[row].tolist() == [labels[read]]
            assert note[row][: len(notes[read])].tolist() == notes[read].tolist()
            np.testing.assert_array_equal(images[row], pictures[read])
            read += 1
    assert read == len(pictures)


# All or nothing.


@pytest.mark.parametrize(
    ("samples", "fields", "message"),
    [
        (Failing(OSError("disk gone")), BLOB, "sample 7: disk gone"),
        (Failing(KeyError("x")), BLOB, "sample 7: KeyError"),
        ([*blobs(1, 2, 3), (blob_of(1),)], BLOB, "sample 3: 1 values for 2 fields"),
        ([*blobs(1, 2), (blob_of(1), "x")], BLOB, "sample 2: "),
        ([*blobs(1), ("text", 1)], BLOB, "sample 1: "),
        (
            [(np.zeros((4, 4, 3), dtype=np.uint8), 0), (np.zeros((4, 4, 3)), 0)],
            {"image": RGBImageField(), "label": IntField()},
            "sample 1: .*uint8",
        ),
    ],
    ids=["disk", "key", "short", "label", "blob", "image"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_failing_sample_is_named_and_leaves_nothing(
    samples: Any, fields: Any, message: str, workers: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^Cannot encode {message}"):
        write_beton(tmp_path / "a.beton", samples, fields, num_workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_beton(tmp_path / "a.beton", Failing(KeyboardInterrupt()), BLOB)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_larger_than_a_page_is_named(tmp_path: Path) -> None:
    samples = blobs(5, PAGE_SIZE + 1, 5)
    message = f"^Sample 1 takes {PAGE_SIZE + 1} bytes and does not fit into a page"
    with pytest.raises(ValueError, match=message):
        write_beton(tmp_path / "a.beton", samples, BLOB, page_size=PAGE_SIZE, seed=None)
    assert list(tmp_path.iterdir()) == []
    index = write_beton(tmp_path / "a.beton", samples, BLOB, page_size=2 * PAGE_SIZE, seed=None)
    assert index.sample_bytes().tolist() == [5, PAGE_SIZE + 1, 5]


@pytest.mark.parametrize(
    ("samples", "names"),
    [(Failing(OSError("gone")), ()), (blobs(1, 2), ("only one",)), ([(blob_of(1), -1)], ())],
    ids=["sample", "class names", "label"],
)
def test_a_failure_leaves_an_existing_beton_as_it_was(
    samples: Any, names: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "a.beton"
    write_beton(path, blobs(4, 5), BLOB, class_names=["a", "b"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == ["a.beton", "a.beton.json"]
    with pytest.raises(ValueError, match=r"Cannot encode|class id"):
        write_beton(path, samples, BLOB, class_names=names)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# Bad arguments.


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.one_of(
        st.just(""),
        st.text(st.characters(max_codepoint=127), min_size=17, max_size=40),
        st.tuples(st.text(max_size=8), st.characters(min_codepoint=128)).map("".join),
        st.tuples(st.text("ab", max_size=8), st.text("b", max_size=7)).map("\0".join),
    )
)
def test_bad_field_names_are_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "never written"
    with pytest.raises(ValueError, match=r"^Field names must have 1 to 16 ASCII characters"):
        write_beton(folder / "a.beton", [(1, 2)], {**LABEL, name: IntField()})
    assert not folder.exists()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=16))
def test_good_field_names_come_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("names") / "a.beton"
    index = write_beton(path, [(5,)], {name: IntField()}, label_field="")
    assert [field.name for field in BetonIndex.open(path).fields] == [name]
    assert index.column(name).tolist() == [5]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.one_of(
        st.integers(max_value=PAGE_SIZE - 1),
        st.integers(min_value=1 << 32),
        st.integers(PAGE_SIZE, 1 << 32).filter(lambda size: size & (size - 1)),
        st.sampled_from([0, 1, 1 << 20, 1 << 32, 1 << 40]),
    )
)
def test_bad_page_sizes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, page_size: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "never written"
    with pytest.raises(
        ValueError, match=r"^`page_size` must be a power of two from 2 MiB to 2 GiB"
    ):
        write_beton(folder / "a.beton", [(1,)], LABEL, page_size=page_size)
    assert not folder.exists()


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.beton"
    with pytest.raises(ValueError, match=r"^`samples` is empty"):
        write_beton(path, [], LABEL)
    with pytest.raises(ValueError, match=r"^`fields` is empty"):
        write_beton(path, [()], {})
    for field in (FloatField(), BytesField(), NDArrayField(np.dtype("<i8"), (1,)), JSONField()):
        with pytest.raises(ValueError, match=r"^`label_field` must name an IntField; 'label' is a"):
            write_beton(path, [(1,)], {"label": field})
    assert not path.parent.exists()


def test_labels_must_be_class_ids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"field 'label' must lie in \[0, .*; got values from -3"):
        write_beton(tmp_path / "a.beton", [(2,), (-3,)], LABEL)
    with pytest.raises(ValueError, match="class id 2 has no name: `class_names` has 2"):
        write_beton(tmp_path / "a.beton", [(2,)], LABEL, class_names=["a", "b"])
    assert list(tmp_path.iterdir()) == []


# The manifest.


def test_the_manifest_says_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.beton"
    options = {"root": "images", "quality": 90, "parts": [1, 2]}
    names = ["zero", "eins", "zwei, drei", "vier"]
    samples = [(blob_of(3), label) for label in (2, 0, 2)]
    index = write_beton(path, samples, BLOB, class_names=names, written_by=options)
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


def test_the_manifest_counts_the_label_field_it_is_told(tmp_path: Path) -> None:
    fields = {"label": IntField(), "kind": IntField()}
    write_beton(tmp_path / "a.beton", [(0, 1), (0, 1)], fields, label_field="kind")
    write_beton(tmp_path / "b.beton", [(0, 1), (0, 1)], fields, label_field="none")
    manifests = [read_manifest(tmp_path / name) for name in ("a.beton", "b.beton")]
    assert [manifest and manifest.class_counts for manifest in manifests] == [(0, 2), ()]


def test_a_beton_without_a_manifest_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    write_beton(path, [(0,), (1,)], LABEL, class_names=["a", "b", "c"])
    (tmp_path / "a.beton.json").unlink()
    index = BetonIndex.open(path)
    assert read_manifest(path) is None
    assert index.manifest is None
    assert index.num_classes == 2


def test_a_manifest_of_another_beton_is_ignored(tmp_path: Path) -> None:
    path, other = tmp_path / "a.beton", tmp_path / "b.beton"
    write_beton(path, [(0,), (1,)], LABEL, class_names=["a", "b", "c"])
    write_beton(other, [(1,), (0,)], LABEL)
    other.replace(path)
    assert read_manifest(path) is not None
    assert BetonIndex.open(path).manifest is None
    assert BetonIndex.open(path).num_classes == 2


def damage_text(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def damage_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x80")


def damage_list(path: Path) -> None:
    path.write_text("[1, 2]")


def drop_entry(path: Path) -> None:
    stored = json.loads(path.read_text())
    del stored["class_names"]
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize("damage", [damage_text, damage_bytes, damage_list, drop_entry])
def test_a_damaged_manifest_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    index = write_beton(path, [(0,)], LABEL)
    damage(tmp_path / "a.beton.json")
    with pytest.raises(ValueError, match=r"a\.beton\.json.* is not a beton's manifest"):
        _ = index.manifest


class SignedField(Field):
    """A field that keeps its place as a signed number."""

    metadata_type = np.dtype([("place", "<i8"), ("number", "<i8")])

    @classmethod
    def from_binary(cls, binary: Any) -> Field:
        return cls()

    def to_binary(self) -> Any:
        return np.zeros(1, dtype=ARG_TYPE)[0]

    def get_decoder_class(self) -> Any:
        raise NotImplementedError

    def encode(self, destination: Any, value: bytes, malloc: Any) -> None:
        destination["place"], storage = malloc(len(value))
        destination["number"] = -len(value)
        storage[:] = np.frombuffer(value, dtype=np.uint8)


def test_a_place_may_be_kept_as_a_signed_number(tmp_path: Path) -> None:
    values = [bytes([number]) * (number + 1) for number in range(9)]
    samples = [(value, number) for number, value in enumerate(values)]
    fields = {"signed": SignedField(), **LABEL}
    index = write_beton(tmp_path / "a.beton", samples, fields, seed=None, num_workers=0)
    data = index.path.read_bytes()
    found = [data[row["place"] : row["place"] - row["number"]] for row in index.column("signed")]
    assert found == values
