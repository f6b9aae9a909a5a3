"""Compacting with other images: raw pixels as ffcv decodes them, JPEGs, smaller ones, a budget."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex, Selection, artifacts, compact, write_beton
from dp4tl_ffcv.artifacts import locked_part
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton.verify.verification import verify
from dp4tl_ffcv.compaction import plan as planning
from dp4tl_ffcv.compaction import transcode
from dp4tl_ffcv.compaction.plan import SourceBeton, retain
from dp4tl_ffcv.compaction.transcode import ImageOptions, Transcoder
from dp4tl_ffcv.jpeg import turbojpeg
from dp4tl_ffcv.kernels import resize_area
from dp4tl_ffcv.utils import sha256_of_file
from dp4tl_ffcv.writing import build, pages
from dp4tl_ffcv.writing.fields import ImageField
from tests.support.betons import Written, write_stock

from .test_plan import sha256, stored_at, twin

PAGE_SIZE = 1 << 21
ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"note": BytesField(), "label": IntField()}


def paint(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth image with grain that is stronger for higher numbers."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack((rows, columns, rows + columns + number), axis=-1) % 200
    grain = rng.normal(size=smooth.shape) * (number % 7) * 6
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 JPEGs of many sizes, with a note each: one page, or two of their pixels."""
    samples = [
        (np.full(number % 4, number, dtype=np.uint8), number, paint(number, 130 + number, 200))
        for number in range(36)
    ]
    image = RGBImageField(write_mode="jpg", jpeg_quality=95)
    path = tmp_path_factory.mktemp("transcode") / "source.beton"
    return write_stock(path, samples, {**FIELDS, "image": image}, 2, chunk=5)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of one size, JPEG or raw at random, by ffcv's writer."""
    samples = [(paint(number, 120, 88), number) for number in range(24)]
    image = RGBImageField(write_mode="proportion", compress_probability=0.5, jpeg_quality=90)
    path = tmp_path_factory.mktemp("even") / "even.beton"
    write_stock(path, samples, {"image": image, "label": IntField()})
    assert set(BetonIndex.open(path).column("image")["mode"]) == {0, 1}
    return path


def images(path: Path) -> dict[int, tuple[Any, bytes]]:
    """Metadata and stored bytes of each image by label."""
    index, data = BetonIndex.open(path), path.read_bytes()
    column = index.column("image")
    return {
        int(label): (column[row], stored_at(index, data, row, column["data_ptr"][row]))
        for row, label in enumerate(index.labels())
    }


def pixels_of(record: Any, data: bytes) -> NDArray[np.uint8]:
    assert record["mode"] == 1
    return np.frombuffer(data, dtype=np.uint8).reshape(record["height"], record["width"], 3)


def read_with_stock(path: Path, os_cache: bool) -> dict[int, str]:
    loader = Loader(
        str(path),
        batch_size=7,
        num_workers=1,
        os_cache=os_cache,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    return {
        int(label[0]): sha256(image)
        for batch in loader
        for image, label in zip(*batch, strict=True)
    }


# What is stored.


@pytest.mark.parametrize("os_cache", [True, False])
def test_raw_images_are_the_pixels_that_stock_ffcv_decodes(
    os_cache: bool, even: Path, tmp_path: Path
) -> None:
    ids = np.arange(3, 20)
    index = compact(even, ids, tmp_path / "raw.beton", images="raw", jobs=2)
    assert set(index.column("image")["mode"]) == {1}
    decoded = read_with_stock(even, os_cache=True)
    assert verify(tmp_path / "raw.beton", decode=True).problems == ()
    labels = BetonIndex.open(even).labels()[ids].tolist()
    assert read_with_stock(tmp_path / "raw.beton", os_cache) == {n: decoded[n] for n in labels}


def test_raw_images_become_jpegs_and_jpegs_stay(even: Path, tmp_path: Path) -> None:
    compact(even, None, tmp_path / "out.beton", images="jpeg", jobs=2)
    before, after = images(even), images(tmp_path / "out.beton")
    assert after.keys() == before.keys()
    for number, (record, data) in after.items():
        was, stored = before[number]
        assert record["mode"] == 0
        assert (record["height"], record["width"]) == (120, 88)
        if was["mode"] == 0:
            assert sha256(data) == sha256(stored)
        else:
            made = turbojpeg.encode(pixels_of(was, stored), quality=90)
            assert sha256(data) == sha256(made)


@pytest.mark.parametrize("form", ["keep", "jpeg", "raw"])
def test_larger_images_are_shrunk_and_others_kept(form: Any, source: Path, tmp_path: Path) -> None:
    compact(source, None, tmp_path / "out.beton", max_resolution=199, images=form, jobs=2)
    everything = images(tmp_path / "out.beton")
    compact(source, None, tmp_path / "more.beton", max_resolution=200, images=form, jobs=2)
    kept = images(tmp_path / "more.beton")
    for number, (was, stored) in images(source).items():
        record, data = everything[number]
        size = (round((130 + number) * 199 / 200), 199)
        assert (record["height"], record["width"]) == size
        expected = resize_area(turbojpeg.decode(stored), size)
        if form == "raw":
            np.testing.assert_array_equal(pixels_of(record, data), expected)
            exact = turbojpeg.decode(stored, fast=True)
            np.testing.assert_array_equal(pixels_of(*kept[number]), exact)
        else:
            assert sha256(data) == sha256(turbojpeg.encode(expected, quality=90))
            assert sha256(kept[number][1]) == sha256(stored)
        assert (was["height"], was["width"]) == (130 + number, 200)


def test_raw_images_that_are_shrunk_stay_raw(tmp_path: Path) -> None:
    samples = [(paint(number, 50 + 10 * number, 30), number) for number in range(6)]
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    write_beton(tmp_path / "a.beton", samples, fields, num_workers=0)
    compact(tmp_path / "a.beton", None, tmp_path / "b.beton", max_resolution=80, jobs=1)
    for number, (record, data) in images(tmp_path / "b.beton").items():
        image = samples[number][0]
        if len(image) > 80:
            image = resize_area(image, (80, round(30 * 80 / len(image))))
        np.testing.assert_array_equal(pixels_of(record, data), image)


def test_other_fields_keep_their_bytes(written: Written, tmp_path: Path) -> None:
    source = BetonIndex.open(written.path, custom_fields=written.custom_fields)
    index = compact(
        written.path,
        np.arange(20),
        tmp_path / "out.beton",
        images="raw",
        layout="class",
        custom_fields=written.custom_fields,
        jobs=2,
    )
    data = (tmp_path / "out.beton").read_bytes()
    assert set(index.column("photo")["mode"]) == set(index.column("pixels")["mode"]) == {1}
    assert sorted(index.column("hash")) == sorted(source.column("hash")[:20])
    for row in range(20):
        number = int(index.column("hash")[row]) % (1 << 59)
        for name, stored in written.stored[number].items():
            value = index.column(name)[row]
            names = value.dtype.names or ()
            pointer = next((value[each] for each in names if each.endswith("ptr")), value)
            if name == "photo":
                pixels = turbojpeg.decode(stored, fast=True)
                stored = pixels.tobytes()
                assert (value["height"], value["width"]) == pixels.shape[:2]
            assert sha256(stored_at(index, data, row, pointer)) == sha256(stored)
    table = index.allocations
    last = table["ptr"] + np.maximum(table["size"], np.uint64(1)) - np.uint64(1)
    assert (table["ptr"] // np.uint64(index.page_size) == last // np.uint64(index.page_size)).all()


def test_where_nothing_changes_the_samples_are_copied(tmp_path: Path) -> None:
    samples = [(paint(number, 50, 30), number) for number in range(6)]
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    write_beton(tmp_path / "a.beton", samples, fields, num_workers=0)
    options: list[dict[str, Any]] = [{}, {"images": "raw"}, {"max_resolution": 50}]
    for number, each in enumerate(options):
        compact(tmp_path / "a.beton", None, tmp_path / f"{number}.beton", **each)
    assert len({sha256_of_file(tmp_path / f"{number}.beton") for number in range(3)}) == 1


def test_the_bytes_do_not_depend_on_the_processes(source: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        compact(source, None, tmp_path / f"{jobs}.beton", max_resolution=100, jobs=jobs)
    assert sha256_of_file(tmp_path / "1.beton") == sha256_of_file(tmp_path / "3.beton")


def test_pages_grow_for_pixels(tmp_path: Path) -> None:
    samples = [(paint(number, 900, 1000), number) for number in range(2)]
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    write_beton(tmp_path / "a.beton", samples, fields, page_size=PAGE_SIZE, num_workers=0)
    index = compact(tmp_path / "a.beton", None, tmp_path / "b.beton", images="raw", jobs=2)
    assert index.page_size == 2 * PAGE_SIZE
    assert index.sample_bytes().tolist() == [2_700_000] * 2


def test_pages_grow_for_jpegs_that_are_made_and_take_more_than_expected(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rough = rng.integers(0, 256, (2800, 2800, 3), dtype=np.uint8)
    small = [turbojpeg.encode(rough[: 400 + n, :500], quality=100) for n in range(9)]
    contents = [turbojpeg.encode(rough, quality=3), *small]
    fields = {"image": ImageField(), "label": IntField()}
    samples = [(content, number) for number, content in enumerate(contents)]
    path = tmp_path / "a.beton"
    write_beton(path, samples, fields, page_size=PAGE_SIZE, num_workers=0)
    index = compact(path, None, tmp_path / "b.beton", max_resolution=450, jobs=1)
    assert index.page_size == PAGE_SIZE
    index = compact(path, None, tmp_path / "c.beton", max_resolution=2790, jobs=2)
    assert index.sample_bytes().max() > PAGE_SIZE
    assert verify(tmp_path / "c.beton", decode=True).problems == ()


def jpegs(path: Path, contents: list[bytes], **options: Any) -> Path:
    """A beton of JPEGs by our writer; labels are ids."""
    samples = [(content, number) for number, content in enumerate(contents)]
    fields = {"image": ImageField(), "label": IntField()}
    write_beton(path, samples, fields, seed=None, num_workers=0, **options)
    return path


def test_pages_are_not_doubled_for_what_jpegs_might_take_at_most(tmp_path: Path) -> None:
    content = turbojpeg.encode(paint(1, 1750, 1750), quality=90)
    path = jpegs(tmp_path / "a.beton", [content])
    index = compact(path, None, tmp_path / "b.beton", max_resolution=1740, jobs=1)
    assert 3 * 1740 * 1740 > BetonIndex.open(path).page_size == 1 << 23
    assert index.page_size == 1 << 23


@pytest.mark.parametrize("ahead", [True, False])  # for what it may take at most, or as needed
def test_pages_hold_a_jpeg_that_takes_more_than_all_expect(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead:
        for module in (build, transcode):
            monkeypatch.setattr(module, "DEFAULT_PAGE_SIZE", PAGE_SIZE)
    monkeypatch.setattr(transcode, "_PROBES", 1)  # only the flat one is looked at
    grain = np.random.default_rng(1).integers(0, 2, (1664, 1664, 1), dtype=np.uint8)
    rough = np.repeat(255 * grain, 3, axis=2)
    contents = [turbojpeg.encode(each, quality=20) for each in (np.full_like(rough, 9), rough)]
    path = jpegs(tmp_path / "a.beton", contents, page_size=PAGE_SIZE)
    out = tmp_path / "b.beton"
    index = compact(path, None, out, max_resolution=1660, layout="class", jobs=1)
    assert PAGE_SIZE < index.sample_bytes().max() < 2 * PAGE_SIZE
    assert index.page_size == (4 if ahead else 2) * PAGE_SIZE
    assert verify(out, decode=True).problems == ()


def test_a_sample_is_read_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SourceBeton(source) as opened:
        order = np.arange(36)
        retained = retain(opened.index, order)
        transcoder = Transcoder(opened, retained, order, ImageOptions(images="raw"))
        read, sizes = opened.file.read, []

        def count(offset: int, size: int) -> bytearray:
            sizes.append(size)
            return read(offset, size)

        monkeypatch.setattr(opened.file, "read", count)
        transcoder.encode(7)
        assert sum(sizes) == opened.index.sample_bytes()[7]


# The budget.


def cost_order(path: Path, ids: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Id, bytes as JPEG and as pixels: what costs most to decode per byte that it saves first."""
    index = BetonIndex.open(path)
    rows = []
    for number in ids.tolist():
        record = index.column("image")[number]
        extents = index.extents([number])
        jpeg = extents["size"][extents["ptr"] == record["data_ptr"]].max()
        rows.append((number, int(jpeg), 3 * int(record["height"]) * int(record["width"])))
    return sorted(rows, key=lambda row: (-row[1] / (row[2] - row[1]), row[0]))


def expected_size(index: BetonIndex, source: BetonIndex, raw: dict[int, int]) -> int:
    """Bytes of the file with its samples where they are in order, if those in `raw` are raw."""
    by_label = {int(label): number for number, label in enumerate(source.labels())}
    rooms = []
    for label in index.labels().tolist():
        extents = source.extents([by_label[label]])
        sizes = np.maximum(1, extents["size"].astype(np.int64))
        if by_label[label] in raw:
            sizes = np.array([max(1, label % 4), raw[by_label[label]]])
        rooms.append(int(sizes.sum()))
    tables = 24 + 3 * format.FIELD.itemsize + index.metadata.nbytes
    return twin(rooms, tables, PAGE_SIZE)[1] + 24 * len(index.allocations)


@pytest.mark.parametrize("pages", [2, 3])
def test_a_budget_is_spent_on_what_costs_most_to_decode(
    pages: int, source: Path, tmp_path: Path
) -> None:
    ids = np.arange(2, 36)
    budget = pages * PAGE_SIZE + 2 * 24 * len(ids)
    out = tmp_path / "out.beton"
    index = compact(source, ids, out, raw_budget=budget, seed=4, jobs=2)
    assert out.stat().st_size <= budget
    before = BetonIndex.open(source)
    order = cost_order(source, ids)
    by_label = {int(label): number for number, label in enumerate(before.labels())}
    labels = index.labels()[index.column("image")["mode"] == 1]
    raw = sorted(by_label[label] for label in labels.tolist())
    assert 0 < len(raw) < len(ids) or pages == 3
    assert raw == sorted(number for number, _, _ in order[: len(raw)])
    sizes = {number: pixels for number, _, pixels in order[: len(raw)]}
    assert expected_size(index, before, sizes) == out.stat().st_size
    if len(raw) < len(ids):
        number, _, pixels = order[len(raw)]
        assert expected_size(index, before, {**sizes, number: pixels}) > budget
    for number, (record, data) in images(out).items():
        stored = images(source)[number][1]
        if record["mode"] == 1:
            expected = turbojpeg.decode(stored, fast=True)
            np.testing.assert_array_equal(pixels_of(record, data), expected)
        else:
            assert sha256(data) == sha256(stored)


def test_a_budget_for_everything_stores_everything_raw(source: Path, tmp_path: Path) -> None:
    index = compact(source, None, tmp_path / "out.beton", raw_budget="1.5 GiB", jobs=2)
    assert set(index.column("image")["mode"]) == {1}
    compact(source, None, tmp_path / "raw.beton", images="raw", jobs=2)
    assert sha256_of_file(tmp_path / "out.beton") == sha256_of_file(tmp_path / "raw.beton")


def test_the_smallest_budget_is_the_file_as_it_is(source: Path, tmp_path: Path) -> None:
    compact(source, None, tmp_path / "plain.beton")
    size = (tmp_path / "plain.beton").stat().st_size
    message = f"`raw_budget` must be at least {size} bytes"
    for budget in (size - 1, "1KiB", "0.5 MB"):
        with pytest.raises(ValueError, match=message):
            compact(source, None, tmp_path / "out.beton", raw_budget=budget)
    assert not (tmp_path / "out.beton").exists()


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [("7", 7), ("2KB", 2000), ("2 KiB", 2048), ("1.5k", 1500), ("0.25MiB", 1 << 18), (77, 77)],
)
def test_a_budget_may_be_text(size: Any, num_bytes: int, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"with its images as they are; got {num_bytes}"):
        compact(source, None, tmp_path / "out.beton", raw_budget=size)


def test_of_images_that_cost_the_same_the_first_are_raw(tmp_path: Path) -> None:
    content = turbojpeg.encode(paint(3, 300, 300), quality=90)
    samples = [(content, content, number) for number in range(12)]
    fields = {"a": ImageField(), "b": ImageField(), "label": IntField()}
    path = tmp_path / "a.beton"
    write_beton(path, samples, fields, seed=None, page_size=PAGE_SIZE, num_workers=0)
    seen = set()
    for budget in ("6.4MB", "8.5MB"):  # two pages with images, and three
        index = compact(path, None, tmp_path / "b.beton", raw_budget=budget, jobs=1)
        rows = np.argsort(index.labels())
        raw = np.stack([index.column(name)["mode"][rows] for name in "ab"], axis=1).ravel()
        assert raw.tolist() == sorted(raw.tolist(), reverse=True)
        seen.add(int(raw.sum()))
    assert len(seen) == 2
    assert any(each % 2 for each in seen)
    assert not seen & {0, 24}


def test_a_page_does_not_grow_for_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that costs most is larger as pixels than a page: it stays, and others are raw."""
    rough = np.random.default_rng(2).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    small = [turbojpeg.encode(paint(n, 200, 250), quality=80) for n in range(20)]
    contents = [*small, turbojpeg.encode(rough, quality=90)]
    path = jpegs(tmp_path / "a.beton", contents, page_size=PAGE_SIZE)
    assert cost_order(path, np.arange(21))[0][0] == 20
    monkeypatch.setattr(planning, "_LARGEST_PAGE", PAGE_SIZE)  # no beton can hold its pixels
    for budget, fewest in ((3 * PAGE_SIZE + 1000, 10), (1 << 30, 20)):
        index = compact(path, None, tmp_path / "b.beton", raw_budget=budget, jobs=1)
        raw = index.labels()[index.column("image")["mode"] == 1]
        assert fewest <= len(raw) <= 20
        assert 20 not in raw
        assert index.page_size == PAGE_SIZE
        assert (tmp_path / "b.beton").stat().st_size <= budget


def test_a_budget_with_smaller_images_is_met_nearly(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.beton"
    compact(source, None, out, raw_budget=2 * PAGE_SIZE + 2000, max_resolution=120, jobs=2)
    index = BetonIndex.open(out)
    assert out.stat().st_size <= 2 * PAGE_SIZE + 2000
    compact(source, None, tmp_path / "raw.beton", images="raw", max_resolution=120, jobs=2)
    used = index.sample_bytes().sum() / BetonIndex.open(tmp_path / "raw.beton").sample_bytes().sum()
    assert used > 0.85


# Bad arguments and faults.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_resolution": 0}, "`max_resolution` must lie in 1 to 65535 pixels; got 0"),
        ({"max_resolution": 1.5}, "`max_resolution` must lie in 1 to 65535 pixels; got 1.5"),
        ({"raw_budget": "much"}, "`raw_budget` must be a number of bytes, or text such as 64GiB"),
        ({"raw_budget": -1}, "`raw_budget` must be a number of bytes"),
        ({"raw_budget": "1GiB", "images": "raw"}, "`raw_budget` must be given with `images` keep"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compact(source, None, tmp_path / "out.beton", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_beton_without_images_has_none_to_change(tmp_path: Path) -> None:
    write_beton(tmp_path / "a.beton", [(3,)], {"label": IntField()}, num_workers=0)
    with pytest.raises(ValueError, match="must be left out for a beton without RGB images"):
        compact(tmp_path / "a.beton", None, tmp_path / "b.beton", images="raw")


@pytest.mark.parametrize(
    "options",
    [{"images": "raw"}, {"max_resolution": 100}, {"max_resolution": 100, "images": "raw"}],
)
def test_an_image_that_cannot_be_decoded_is_named(
    options: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.beton"
    data = bytearray(source.read_bytes())
    place = int(BetonIndex.open(source).column("image")["data_ptr"][7])
    data[place : place + 100] = bytes(100)
    path.write_bytes(data)
    message = r"^Cannot encode a\.beton, sample 7: "
    with pytest.raises(ValueError, match=message):
        compact(path, None, tmp_path / "out.beton", jobs=2, **options)
    assert [each.name for each in tmp_path.iterdir()] == ["a.beton"]
    compact(path, np.delete(np.arange(36), 7), tmp_path / "out.beton", jobs=2, **options)


def test_pixels_that_are_not_those_of_the_image_are_named(even: Path, tmp_path: Path) -> None:
    index = BetonIndex.open(even)
    number = int(np.flatnonzero(index.column("image")["mode"])[2])
    path, data = tmp_path / "a.beton", bytearray(even.read_bytes())
    at = format.HEADER.itemsize + 2 * format.FIELD.itemsize
    metadata = np.frombuffer(data, dtype=index.metadata.dtype, count=24, offset=at)
    metadata["f0"]["height"][number] += 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^Cannot encode a\.beton, sample {number}: "):
        compact(path, None, tmp_path / "out.beton", images="jpeg", jobs=1)


def test_too_little_free_space_is_found_before_the_first_byte(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = list(os.statvfs(tmp_path))
    values[1], values[4] = 1, 2 * PAGE_SIZE
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    with pytest.raises(ValueError, match=f"`out` must have room for {3 * PAGE_SIZE + 36 * 48}"):
        compact(source, None, tmp_path / "out.beton", images="raw")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(source.read_bytes())
    encode = Transcoder.encode

    def disturb(self: Any, position: int) -> Any:
        os.utime(path, ns=(0, 0))
        return encode(self, position)

    monkeypatch.setattr(Transcoder, "encode", disturb)
    with pytest.raises(BetonError, match="`source` must not change while it is copied"):
        compact(path, None, tmp_path / "out.beton", images="raw", jobs=1)
    assert [each.name for each in tmp_path.iterdir()] == ["a.beton"]


@pytest.mark.parametrize("options", [{}, {"images": "raw"}])
def test_what_a_killed_run_left_counts_as_free(
    options: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is continued or written anew, and must not keep the rerun from it."""
    out, part = tmp_path / "out.beton", tmp_path / ".out.beton.part"
    compact(source, None, tmp_path / "whole.beton", **options)
    needed = (tmp_path / "whole.beton").stat().st_size
    with part.open("wb") as stream:
        stream.write(np.random.default_rng(0).bytes(1 << 20))
        os.fsync(stream.fileno())
    left = part.stat().st_blocks * 512
    values = list(os.statvfs(tmp_path))
    for short in (1, 0):
        values[1], values[4] = 1, needed - left - short
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
        if short:
            message = f"`out` must have room for {needed} bytes; got {needed - 1} free"
            with pytest.raises(ValueError, match=message):
                compact(source, None, out, **options)
        else:
            compact(source, None, out, **options)
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")


@pytest.mark.parametrize("options", [{}, {"images": "raw"}])
def test_one_process_writes_a_file_at_a_time(
    options: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "_PATIENCE", 0.05)
    out = tmp_path / "out.beton"
    with locked_part(out) as stream:
        stream.write(b"of another")
        stream.flush()
        with pytest.raises(BlockingIOError, match="another process is writing"):
            compact(source, None, out, jobs=1, **options)
        assert (tmp_path / ".out.beton.part").read_bytes() == b"of another"
    compact(source, None, out, jobs=1, **options)


def test_a_disk_that_fills_up_is_named_and_nothing_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, []

    def fill(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(OSError, match=r"out\.beton") as caught:
        compact(source, None, tmp_path / "out.beton", images="raw", jobs=1)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_is_an_error_and_nothing_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Transcoder.encode

    def die(self: Any, position: int) -> Any:
        if position == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, position)

    monkeypatch.setattr(Transcoder, "encode", die)
    with pytest.raises(RuntimeError, match="a worker process died"):
        compact(source, None, tmp_path / "out.beton", images="raw", jobs=2)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    folder = shared / f"transcode-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_another_file_system_gets_the_same_bytes(
    source: Path, tmp_path: Path, other_file_system: Path
) -> None:
    folders = (tmp_path, other_file_system)
    for folder in folders:
        compact(source, None, folder / "out.beton", images="raw", jobs=2)
    assert len({sha256_of_file(folder / "out.beton") for folder in folders}) == 1
    assert len(list(other_file_system.iterdir())) == 2


# Runs that are continued.


KILLED = """
import os, signal, sys
from dp4tl_ffcv import compact
from dp4tl_ffcv.writing import pages

place, left = pages.PageWriter.place, int(sys.argv[3])
if left > 1:
    pages.COMMIT_BYTES = 0
def kill(self, *arguments):
    global left
    place(self, *arguments)
    left -= 1
    if not left:
        self._wait()
        os.kill(os.getpid(), signal.SIGKILL)
pages.PageWriter.place = kill
compact(sys.argv[1], None, sys.argv[2], images="raw", jobs=1)
"""


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples are placed, batch by batch."""
    place, placed = pages.PageWriter.place, []

    def count(self: Any, batch: Any, *arguments: Any) -> None:
        placed.append(len(batch.rows))
        place(self, batch, *arguments)

    monkeypatch.setattr(pages.PageWriter, "place", count)
    return placed


@pytest.mark.parametrize("batches", [1, 3])  # before anything is recorded, and after
def test_a_killed_run_leaves_no_file_and_the_next_gives_the_same_bytes(
    batches: int, source: Path, tmp_path: Path, placed: list[int]
) -> None:
    compact(source, None, tmp_path / "whole.beton", images="raw", jobs=1)
    out = tmp_path / "folder" / "out.beton"
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(batches)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    assert (out.parent / ".out.beton.part.json").exists() == (batches > 1)
    placed.clear()
    compact(source, None, out, images="raw", jobs=1)
    assert (sum(placed) < 36) == (batches > 1)
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.beton", "out.beton.json"]


def stop_after(batches: int, *arguments: Any, **options: Any) -> None:
    """Compact until some batches are placed and recorded, which leaves an unfinished file."""
    place, left = pages.PageWriter.place, [batches]

    def stop(self: Any, *batch: Any) -> None:
        if not left[0]:
            raise OSError("stopped")
        left[0] -= 1
        place(self, *batch)
        self._save()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages.PageWriter, "place", stop)
        with pytest.raises(OSError, match="stopped"):
            compact(*arguments, **options)


def test_what_other_options_left_is_not_continued(
    source: Path, tmp_path: Path, placed: list[int]
) -> None:
    """Of two files that differ in the label of one sample, which nobody looks at."""
    chosen = Selection.of_indices(BetonIndex.open(source), np.delete(np.arange(36), 34))
    orders = {seed: np.random.default_rng(seed).permutation(chosen.indices) for seed in range(99)}
    seed = next(seed for seed, order in orders.items() if order[2] == 35)
    out = tmp_path / "out.beton"
    options: dict[str, Any] = {"images": "raw", "seed": seed, "jobs": 1}
    compact(source, chosen, tmp_path / "whole.beton", relabel=True, **options)
    stop_after(3, source, chosen, out, **options)
    placed.clear()
    compact(source, chosen, out, relabel=True, **options)
    assert sum(placed) == 35
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")
    stop_after(3, source, chosen, out, **options)
    placed.clear()
    compact(source, chosen, out, **options)
    assert sum(placed) < 35


def test_what_a_killed_run_left_does_not_outlive_a_run_with_other_options(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folder" / "out.beton"
    out.parent.mkdir()
    for suffix in ("", ".json", ".table"):
        (out.parent / f".out.beton.part{suffix}").write_bytes(b"left")
    compact(source, None, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.beton", "out.beton.json"]
