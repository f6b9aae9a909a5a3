"""`verify`: no problem in sound betons, and each kind of damage in others."""

import errno
import json
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex
from dp4tl_ffcv.atomic import write_json
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton.descriptors import CustomFieldError
from dp4tl_ffcv.beton.manifest import manifest_path
from dp4tl_ffcv.beton.verify.verification import Verification, verify
from dp4tl_ffcv.jpeg import turbojpeg
from tests.conftest import Images
from tests.support.betons import (
    PAGE_SIZE,
    Parts,
    Written,
    damage,
    every_field,
    every_sample,
    put,
    write_ours,
    write_stock,
)

BYTES = {"a": BytesField(), "b": BytesField()}
TINY = 8 * 8 * 3  # bytes of an image of the tiny beton


def found(result: Verification) -> set[tuple[str, int | None]]:
    assert result.num_problems == len(result.problems)
    return {(problem.kind, problem.sample_id) for problem in result.problems}


def sound_counts(result: Verification) -> tuple[int, int, int]:
    """Samples, byte ranges and decoded images of a beton without a problem."""
    assert result.problems == ()
    assert result.is_sound
    return result.samples, result.extents, result.decoded


def known_fields() -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Return fields of each kind except custom ones, which are the last two, and samples."""
    fields, samples = every_field(), every_sample()
    return dict(list(fields.items())[:-2]), [sample[:-2] for sample in samples]


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A beton of `known_fields`, by ffcv's writer."""
    fields, samples = known_fields()
    return write_stock(tmp_path / "known.beton", samples, fields)


@pytest.fixture
def jpegs(photos: Images, tmp_path: Path) -> Path:
    """A copy of 120 photos, without a manifest."""
    return Path(shutil.copyfile(photos.path, tmp_path / "jpegs.beton"))


def place(path: Path, sample_id: int) -> tuple[int, int]:
    """Return the first byte and the size of a sample's image."""
    _, ptr, size = BetonIndex.open(path).extents([sample_id])[0].tolist()
    return ptr, size


# Sound betons.


def test_betons_of_every_writer_have_no_problem(written: Written) -> None:
    result = verify(written.path, decode=True, custom_fields=written.custom_fields)
    count = len(written.samples)
    assert sound_counts(result) == (count, 7 * count, 2 * count)
    assert sound_counts(verify(written.index)) == (count, 7 * count, 0)
    with pytest.raises(BetonError, match=r"custom field 'stamp'.*`custom_fields`"):
        verify(written.path)


def test_every_byte_range_belongs_to_a_record_if_no_field_is_custom(known: Path) -> None:
    fields, samples = known_fields()
    for path in (known, write_ours(known.with_name("again.beton"), samples, fields)):
        assert verify(path, decode=True).problems == ()


@pytest.mark.parametrize(
    ("samples", "fields"),
    [
        *(
            ([(np.zeros(n, np.uint8), np.ones(n % 3, np.uint8)) for n in sizes], BYTES)
            for sizes in ((0, 4, 0), (0, 0, 0), (4, 0, 0, 0, 5))
        ),
        ([(-1, 0.5)], {"a": IntField(), "b": FloatField()}),  # not a label
    ],
)
def test_empty_bytes_and_negative_integers_are_no_problem(
    samples: list[Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    result = verify(write_stock(tmp_path / "a.beton", samples, fields), decode=True)
    assert sound_counts(result)[::2] == (len(samples), 0)


# Files that are not complete betons.


def test_a_file_that_cannot_be_read_is_one_problem(
    unfinished: Path, truncated: Path, tmp_path: Path
) -> None:
    text, empty = tmp_path / "text.beton", tmp_path / "empty.beton"
    text.write_text("no beton at all, but long enough for a header\n")
    empty.touch()
    for path in (unfinished, truncated, text, empty):
        result = verify(path, decode=True)
        assert (result.samples, result.extents, result.decoded) == (0, 0, 0)
        assert found(result) == {("tables", None)}
        with pytest.raises(BetonError) as error:
            BetonIndex.open(path)
        assert result.problems[0].message == str(error.value)
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "none.beton")
    with pytest.raises(ValueError, match="`num_workers` must"):
        verify(unfinished, num_workers=-1)


def test_tables_of_the_wrong_size_are_found(tiny: Path, tiny_bytes: bytes) -> None:
    tiny.write_bytes(tiny_bytes + b"abc")
    assert found(verify(tiny)) == {("tables", None)}
    tiny.write_bytes(tiny_bytes + bytes(48))
    assert BetonIndex.open(tiny).num_samples == 6
    assert found(verify(tiny)) == {("unused", 0)}
    tiny.write_bytes(tiny_bytes[:-48])
    assert found(verify(tiny)) == {("pointer", 4), ("pointer", 5)}
    tiny.write_bytes(tiny_bytes)
    with damage(tiny) as parts:
        parts.header["num_samples"] = 1 << 40
    (problem,) = verify(tiny).problems
    assert problem.kind == "tables"
    assert str(1 << 40) in problem.message


# Damage to the tables.

Change = Callable[[Parts], Any]


def image(name: str, row: int, value: int) -> Change:
    """Change the record of an image."""
    return lambda parts: parts.metadata["f0"][name].__setitem__(row, value)


def extent(name: str, row: int, value: int) -> Change:
    """Change a row of the allocation table."""
    return lambda parts: parts.table[name].__setitem__(row, value)


def move(row: int, by: int) -> Change:
    """Move the bytes of an image, and its pointer."""

    def apply(parts: Parts) -> None:
        place = int(parts.table["ptr"][row]) + by
        parts.table["ptr"][row] = parts.metadata["f0"]["data_ptr"][row] = place

    return apply


def share_bytes(parts: Parts) -> None:
    parts.metadata["f0"]["data_ptr"][5] = parts.metadata["f0"]["data_ptr"][0]


@pytest.mark.parametrize(
    ("apply", "expected"),
    [
        (extent("sample_id", 2, 6), {("owner", 6), ("pointer", 2)}),
        (extent("sample_id", 2, 3), {("pointer", 2), ("unused", 3)}),
        (extent("size", 3, 1 << 63), {("bounds", 3), ("size", 3)}),
        (extent("ptr", 1, 100), {("bounds", 1), ("pointer", 1), ("unused", 1)}),
        (extent("ptr", 1, 2**64 - 8), {("bounds", 1), ("pointer", 1), ("unused", 1)}),
        (
            lambda parts: parts.header.__setitem__("page_size", 256),
            {("page", 1), ("page", 2), ("page", 5)},
        ),
        (move(4, -TINY), {("start", 4)}),
        (move(4, -10), {("overlap", 4)}),
        (extent("size", 0, 3 * TINY), {("overlap", 1), ("overlap", 2), ("size", 0)}),
        (extent("size", 5, TINY - 1), {("size", 5)}),
        (image("data_ptr", 5, 7), {("pointer", 5), ("unused", 5)}),
        (share_bytes, {("pointer", 5), ("unused", 5)}),
        (image("height", 2, 7), {("size", 2)}),
        (image("mode", 1, 2), {("image", 1)}),
        (image("width", 1, 0), {("image", 1)}),
        (image("height", 4, 0), {("image", 4)}),
        (lambda parts: parts.metadata["f1"].__setitem__(3, -1), {("label", 3)}),
    ],
)
def test_damage_to_the_tables_is_found(
    apply: Change, expected: set[tuple[str, int]], tiny: Path
) -> None:
    with damage(tiny) as parts:
        apply(parts)
    assert found(verify(tiny)) == expected
    wrong = {sample for kind, sample in expected if kind in ("pointer", "size", "image", "bounds")}
    assert verify(tiny, decode=True).decoded == 6 - len(wrong)


def test_messages_name_bytes_and_the_other_sample(tiny: Path) -> None:
    start = BetonIndex.open(tiny).extents([0])["ptr"][0]
    with damage(tiny) as parts:
        parts.table["size"][0] = 3 * TINY
        parts.metadata["f1"][3] = -5
    messages = {(each.kind, each.sample_id): each.message for each in verify(tiny).problems}
    assert messages["overlap", 2] == (
        f"its {TINY} bytes at byte {start + 2 * TINY} overlap bytes of sample 0"
    )
    assert messages["size", 0] == f"'image' has {3 * TINY} bytes instead of {TINY}"
    assert messages["label", 3] == "its label is -5, not in [0, 1048576)"


def test_all_problems_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    path = write_stock(tmp_path / "a.beton", [(1,)] * 1500, {"label": IntField()}, chunk=1500)
    with damage(path) as parts:
        parts.metadata["f0"] = -1
    result = verify(path)
    assert result.num_problems == 1500
    assert [problem.sample_id for problem in result.problems] == list(range(1000))
    with pytest.raises(BetonError, match=r"a\.beton is damaged: 1500 problems"):
        result.raise_for_problems()


def test_a_wrong_size_or_type_is_found_in_every_kind_of_field(known: Path) -> None:
    index = BetonIndex.open(known)
    places = [index.column(name)["ptr"][7] for name in ("blob", "info")]
    places += [index.column(name)[8] for name in ("vector", "tensor")]
    for place in places:
        with damage(known) as parts:
            parts.table["size"][parts.table["ptr"] == place] -= np.uint64(1)
    result = verify(known)
    assert result.num_problems == 4
    assert {(each.kind, each.sample_id) for each in result.problems} == {("size", 7), ("size", 8)}
    with damage(known) as parts:
        parts.descriptors["arguments"][6, 256 + 8 : 256 + 11] = ord("?")
    assert ("tables", None) in found(verify(known))


def test_lost_bytes_of_a_custom_field_are_found(stamps: dict[str, Any], tmp_path: Path) -> None:
    path = write_stock(tmp_path / "a.beton", **stamps)
    classes = {"stamp": type(stamps["fields"]["stamp"])}
    assert verify(path, custom_fields=classes).is_sound
    put(path, path.stat().st_size - 16, np.uint64(PAGE_SIZE + 1000).tobytes())
    assert found(verify(path, custom_fields=classes)) == {("pointer", 5)}


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 10**6), content=st.binary(min_size=1, max_size=12))
def test_a_file_that_open_rejects_has_a_problem(
    position: int, content: bytes, tiny_bytes: bytes, tmp_path: Path
) -> None:
    tables = format.HEADER.itemsize + 2 * format.FIELD.itemsize + 6 * 24
    at = position % (tables + 6 * 24)
    at += 0 if at < tables else len(tiny_bytes) - tables - 6 * 24
    path = tmp_path / "tiny.beton"
    data = bytearray(tiny_bytes)
    data[at : at + len(content)] = content
    path.write_bytes(data)
    try:
        BetonIndex.open(path)
        refused = None
    except CustomFieldError:
        return
    except BetonError as error:
        refused = str(error)
    result = verify(path, decode=True, num_workers=0)
    assert not (refused and result.is_sound), refused


# Manifests.


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "of another beton"},
        {"num_samples": 121},
        {"fields": {"image": "rgb_image"}},
        {"class_counts": [13, 11, *[12] * 8]},
        {"class_counts": [12] * 9},
        {"class_names": ["a", "b"]},
        None,
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_the_file_is_found(
    changed: dict[str, Any] | None, jpegs: Path, photos: Images
) -> None:
    stored = json.loads(manifest_path(photos.path).read_text())
    write_json(manifest_path(jpegs), stored)
    assert sound_counts(verify(jpegs)) == (120, 120, 0)
    for fingerprint in (stored["fingerprint"], ""):
        new = {**stored, "fingerprint": fingerprint, **changed} if changed else "no manifest"
        write_json(manifest_path(jpegs), new)
        assert found(verify(jpegs)) == {("manifest", None)}


def test_a_huge_class_id_contradicts_the_manifest(jpegs: Path, photos: Images) -> None:
    stored = json.loads(manifest_path(photos.path).read_text())
    write_json(manifest_path(jpegs), {**stored, "fingerprint": ""})
    with damage(jpegs) as parts:
        parts.metadata["f1"][5] = 1 << 45
    assert found(verify(jpegs)) == {("manifest", None), ("label", 5)}


# Images.


@pytest.mark.parametrize("workers", [None, 0, 3])
def test_corrupt_jpegs_are_found_if_images_are_decoded(workers: int | None, jpegs: Path) -> None:
    result = verify(jpegs, decode=True, num_workers=workers)
    assert sound_counts(result) == (120, 120, 120)
    ptr, _ = place(jpegs, 17)
    put(jpegs, ptr, b"\x89PNG")
    ptr, size = place(jpegs, 3)
    put(jpegs, ptr + size // 2, bytes(size - size // 2))  # its second half was not written
    ptr, size = place(jpegs, 101)
    put(jpegs, ptr + size - 2, b"\0\0")  # no end: TurboJPEG warns
    with damage(jpegs) as parts:
        parts.metadata["f0"]["height"][44] += 1
        parts.table["size"][parts.table["sample_id"] == 9] -= np.uint64(40)
    assert verify(jpegs).is_sound
    result = verify(jpegs, decode=True, num_workers=workers)
    assert found(result) == {("jpeg", number) for number in (17, 3, 101, 44, 9)}
    assert result.decoded == 115
    messages = {problem.sample_id: problem.message for problem in result.problems}
    assert "Not a JPEG file" in messages[17]
    assert "record says" in messages[44]


def test_read_errors_are_problems(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, (bad, _), (short, _), (large, size) = os.pread, *(place(tiny, n) for n in (2, 4, 5))

    def failing(descriptor: int, size: int, at: int) -> bytes:
        if at == bad:
            raise OSError(errno.EIO, "Input/output error")
        if at == large:
            raise MemoryError
        return pread(descriptor, size - 1 if at == short else size, at)

    monkeypatch.setattr(os, "pread", failing)
    result = verify(tiny, decode=True)
    assert found(result) == {("read", 2), ("read", 4), ("read", 5)}
    assert "Input/output error" in result.problems[0].message
    assert f"no memory for {size} bytes" in result.problems[2].message
    assert result.decoded == 3


def test_an_image_without_memory_for_its_pixels_is_a_problem(
    jpegs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, (ptr, size) = turbojpeg.decode, place(jpegs, 17)
    image = jpegs.read_bytes()[ptr : ptr + size]

    def failing(data: bytes, *, fast: bool) -> NDArray[np.uint8]:
        if data == image:
            raise MemoryError
        return decode(data, fast=fast)

    monkeypatch.setattr(turbojpeg, "decode", failing)
    result = verify(jpegs, decode=True, num_workers=2)
    assert found(result) == {("jpeg", 17)}
    record = BetonIndex.open(jpegs).column("image")[17]
    message = f"no memory for {record['height']} x {record['width']} pixels"
    assert message in result.problems[0].message
    assert result.decoded == 119


def test_an_interruption_leaves_no_file_open(jpegs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    monkeypatch.setattr("dp4tl_ffcv.beton.verify.images.track", stop)
    with pytest.raises(KeyboardInterrupt):
        verify(jpegs, decode=True)
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before


def test_memory_is_a_few_times_the_tables(tmp_path: Path) -> None:
    count, size, page = 200_000, 100_000, 1 << 23
    dtype = format.metadata_dtype([format.FIELD_METADATA[2], format.FIELD_METADATA[1]])
    fields = np.zeros(2, dtype=format.FIELD)
    fields["type_id"], fields["name"][:, 0] = (2, 1), (105, 108)
    metadata, table = np.zeros(count, dtype=dtype), np.zeros(count, dtype=format.ALLOCATION)
    numbers = np.arange(count)
    start = -(-(24 + fields.nbytes + metadata.nbytes) // page) * page
    table["sample_id"], table["size"] = numbers, size
    table["ptr"] = start + numbers // (page // size) * page + numbers % (page // size) * size
    metadata["f0"]["data_ptr"], metadata["f0"]["width"] = table["ptr"], 9
    metadata["f0"]["height"] = 9
    end = -(-(int(table["ptr"][-1]) + size) // page) * page
    header = format.header_bytes(2, page, count, end)
    path = tmp_path / "sparse.beton"
    path.write_bytes(header + fields.tobytes() + metadata.tobytes())
    os.truncate(path, end + table.nbytes)
    put(path, end, table.tobytes())
    tracemalloc.start()
    result = verify(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sound_counts(result) == (count, count, 0)
    assert peak < 6 * (metadata.nbytes + table.nbytes)
