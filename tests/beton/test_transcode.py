"""Compacting with other images: raw pixels as ffcv decodes them, JPEGs, smaller ones, a budget."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from numpy.typing import NDArray

from dp4tl_ffcv import BetonError, BetonIndex, compact, sha256_of_file, write_beton
from dp4tl_ffcv.beton import layout, turbojpeg
from dp4tl_ffcv.beton.image_field import ImageField
from dp4tl_ffcv.beton.transcode import Transcoder
from dp4tl_ffcv.beton.verify import verify
from dp4tl_ffcv.kernels import resize_area

from .conftest import Written, write_stock
from .test_compact import sha256, stored_at, twin

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
    tables = 24 + 3 * layout.FIELD.itemsize + index.metadata.nbytes
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
    with pytest.raises(ValueError, match=f"without any raw images; got {num_bytes}"):
        compact(source, None, tmp_path / "out.beton", raw_budget=size)


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


def test_an_image_that_cannot_be_decoded_is_named(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    data = bytearray(source.read_bytes())
    place = int(BetonIndex.open(source).column("image")["data_ptr"][7])
    data[place : place + 100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"got .* in sample \d+ \(a.beton, sample 7\)"):
        compact(path, None, tmp_path / "out.beton", images="raw", jobs=2)
    assert [each.name for each in tmp_path.iterdir()] == ["a.beton"]
    compact(path, np.delete(np.arange(36), 7), tmp_path / "out.beton", images="raw", jobs=2)


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


KILLED = """
import os, signal, sys
from dp4tl_ffcv import compact
from dp4tl_ffcv.beton.parts import PagedPart

place = PagedPart.place
def kill(*arguments):
    place(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
PagedPart.place = kill
compact(sys.argv[1], None, sys.argv[2], images="raw", jobs=1)
"""


def test_a_killed_run_leaves_no_file_and_the_next_gives_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    compact(source, None, tmp_path / "whole.beton", images="raw", jobs=1)
    out = tmp_path / "folder" / "out.beton"
    command = [sys.executable, "-c", KILLED, str(source), str(out)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    compact(source, None, out, images="raw", jobs=1)
    assert sha256_of_file(out) == sha256_of_file(tmp_path / "whole.beton")
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.beton", "out.beton.json"]


def test_what_a_killed_run_left_does_not_outlive_a_run_with_other_options(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folder" / "out.beton"
    out.parent.mkdir()
    for suffix in ("", ".json", ".table"):
        (out.parent / f".out.beton.part{suffix}").write_bytes(b"left")
    compact(source, None, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.beton", "out.beton.json"]
