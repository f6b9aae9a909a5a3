"""`compact` with new images: raw pixels, JPEGs, smaller images, a budget."""

import shutil
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, compact, index_jpegs
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.beton import index_jpegs as index_module
from dp4tl_ffcv.beton.verify.verification import verify
from dp4tl_ffcv.compaction import plan as planning
from dp4tl_ffcv.compaction import transcode
from dp4tl_ffcv.jpeg import turbojpeg
from dp4tl_ffcv.jpeg.baseline import is_baseline
from dp4tl_ffcv.kernels import resize_area
from dp4tl_ffcv.utils import sha256_of_file
from dp4tl_ffcv.writing import build
from dp4tl_ffcv.writing.fields import ImageField
from tests.compaction.support import (
    expected_places,
    jpegs,
    paint,
    read_images,
    sha256,
    stored_at,
)
from tests.support.betons import PAGE_SIZE, damage, put, write_ours, write_stock
from tests.support.images import jpeg

RAW_AND_LABEL = {"image": RGBImageField(write_mode="raw"), "label": IntField()}


@pytest.fixture
def source(jpeg_source: Path) -> Path:
    return jpeg_source


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
    """Return metadata and stored bytes of each image, by label."""
    index, data = BetonIndex.open(path), path.read_bytes()
    column = index.column("image")
    return {
        int(label): (column[row], stored_at(index, data, row, column["data_ptr"][row]))
        for row, label in enumerate(index.labels())
    }


def pixels_of(record: Any, data: bytes) -> NDArray[np.uint8]:
    assert record["mode"] == 1
    return np.frombuffer(data, dtype=np.uint8).reshape(record["height"], record["width"], 3)


# Stored images.


@pytest.mark.parametrize("os_cache", [True, False])
def test_raw_images_are_the_pixels_that_stock_ffcv_decodes(
    os_cache: bool, even: Path, tmp_path: Path
) -> None:
    ids = np.arange(3, 20)
    index = compact(even, ids, tmp_path / "raw.beton", images="raw", num_workers=2)
    assert set(index.column("image")["mode"]) == {1}
    decoded = read_images(even, os_cache=True)
    assert verify(tmp_path / "raw.beton", decode=True).problems == ()
    labels = BetonIndex.open(even).labels()[ids].tolist()
    assert read_images(tmp_path / "raw.beton", os_cache) == {n: decoded[n] for n in labels}


def test_raw_images_become_jpegs_and_jpegs_keep_their_bytes(even: Path, tmp_path: Path) -> None:
    compact(even, None, tmp_path / "out.beton", images="jpeg", num_workers=2)
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
    compact(source, None, tmp_path / "out.beton", max_resolution=199, images=form, num_workers=2)
    everything = images(tmp_path / "out.beton")
    compact(source, None, tmp_path / "more.beton", max_resolution=200, images=form, num_workers=2)
    kept = images(tmp_path / "more.beton")
    compact(source, None, tmp_path / "one.beton", max_resolution=199, images=form, num_workers=1)
    assert sha256_of_file(tmp_path / "one.beton") == sha256_of_file(tmp_path / "out.beton")
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


def test_raw_images_that_are_shrunk_stay_raw_and_others_are_copied(tmp_path: Path) -> None:
    samples = [(paint(number, 50 + 10 * number, 30), number) for number in range(6)]
    path = write_ours(tmp_path / "a.beton", samples, RAW_AND_LABEL)
    compact(path, None, tmp_path / "b.beton", max_resolution=80, num_workers=1)
    for number, (record, data) in images(tmp_path / "b.beton").items():
        image = samples[number][0]
        if len(image) > 80:
            image = resize_area(image, (80, round(30 * 80 / len(image))))
        np.testing.assert_array_equal(pixels_of(record, data), image)
    options: list[dict[str, Any]] = [{}, {"images": "raw"}, {"max_resolution": 100}]
    for number, each in enumerate(options):
        compact(path, None, tmp_path / f"{number}.beton", **each)
    assert len({sha256_of_file(tmp_path / f"{number}.beton") for number in range(3)}) == 1


def test_pages_grow_for_pixels(tmp_path: Path) -> None:
    contents = [turbojpeg.encode(paint(number, 900, 1000), quality=90) for number in range(2)]
    path = jpegs(tmp_path / "a.beton", contents)
    index = compact(path, None, tmp_path / "b.beton", images="raw", num_workers=2)
    assert index.page_size == 2 * PAGE_SIZE
    assert index.sample_bytes().tolist() == [2_700_000] * 2


def test_pages_are_not_doubled_for_the_upper_limit_of_a_jpeg(tmp_path: Path) -> None:
    content = turbojpeg.encode(paint(1, 1750, 1750), quality=90)
    path = jpegs(tmp_path / "a.beton", [content], page_size=None)
    index = compact(path, None, tmp_path / "b.beton", max_resolution=1740, num_workers=1)
    assert 3 * 1740 * 1740 > BetonIndex.open(path).page_size == 1 << 23
    assert index.page_size == 1 << 23


@pytest.mark.parametrize("ahead", [True, False])  # for the upper limit, or as needed
def test_pages_hold_a_jpeg_larger_than_estimated(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead:
        for module in (build, transcode):
            monkeypatch.setattr(module, "DEFAULT_PAGE_SIZE", PAGE_SIZE)
    monkeypatch.setattr(transcode, "_PROBES", 1)  # only the flat one is encoded
    grain = np.random.default_rng(1).integers(0, 2, (1664, 1664, 1), dtype=np.uint8)
    rough = np.repeat(255 * grain, 3, axis=2)
    contents = [turbojpeg.encode(each, quality=20) for each in (np.full_like(rough, 9), rough)]
    path = jpegs(tmp_path / "a.beton", contents)
    out = tmp_path / "b.beton"
    index = compact(path, None, out, max_resolution=1660, layout="class", num_workers=1)
    assert PAGE_SIZE < index.sample_bytes().max() < 2 * PAGE_SIZE
    assert index.page_size == (4 if ahead else 2) * PAGE_SIZE
    assert verify(out, decode=True).problems == ()


# The budget.


def cost_order(path: Path, ids: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return id, bytes as JPEG and bytes as pixels, sorted by decoding time saved per byte."""
    index = BetonIndex.open(path)
    rows = []
    for number in ids.tolist():
        record = index.column("image")[number]
        extents = index.extents([number])
        jpeg = extents["size"][extents["ptr"] == record["data_ptr"]].max()
        rows.append((number, int(jpeg), 3 * int(record["height"]) * int(record["width"])))
    return sorted(rows, key=lambda row: (-row[1] / (row[2] - row[1]), row[0]))


def expected_size(index: BetonIndex, source: BetonIndex, raw: dict[int, int]) -> int:
    """Return the size of a file with the samples of `index`, if the images in `raw` are raw."""
    by_label = {int(label): number for number, label in enumerate(source.labels())}
    rooms = []
    for label in index.labels().tolist():
        extents = source.extents([by_label[label]])
        sizes = np.maximum(1, extents["size"].astype(np.int64))
        if by_label[label] in raw:
            sizes = np.array([max(1, label % 4), raw[by_label[label]]])
        rooms.append(int(sizes.sum()))
    tables = 24 + 3 * format.FIELD.itemsize + index.metadata.nbytes
    return expected_places(rooms, tables, PAGE_SIZE)[1] + 24 * len(index.allocations)


@pytest.mark.parametrize(("pages", "everything"), [(2, False), (3, False), (9, True)])
def test_a_budget_is_spent_on_the_images_that_cost_most_to_decode(
    pages: int, everything: bool, source: Path, tmp_path: Path
) -> None:
    ids = np.arange(2, 36)
    budget = pages * PAGE_SIZE + 2 * 24 * len(ids)
    out = tmp_path / "out.beton"
    index = compact(source, ids, out, raw_budget=budget, seed=4, num_workers=2)
    assert out.stat().st_size <= budget
    before = BetonIndex.open(source)
    order = cost_order(source, ids)
    by_label = {int(label): number for number, label in enumerate(before.labels())}
    labels = index.labels()[index.column("image")["mode"] == 1]
    raw = sorted(by_label[label] for label in labels.tolist())
    assert 0 < len(raw) < len(ids) or pages == 3 or everything
    assert len(raw) == len(ids) or not everything
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


def test_the_smallest_budget_is_the_size_without_raw_images(source: Path, tmp_path: Path) -> None:
    compact(source, None, tmp_path / "plain.beton")
    size = (tmp_path / "plain.beton").stat().st_size
    for budget, found in ((size - 1, size - 1), ("1KiB", 1024), ("0.5 MB", 500_000)):
        message = f"`raw_budget` of {found} bytes is too small: .* has {size}"
        with pytest.raises(ValueError, match=message):
            compact(source, None, tmp_path / "out.beton", raw_budget=budget)
    assert not (tmp_path / "out.beton").exists()


def test_of_equal_images_the_first_become_raw(tmp_path: Path) -> None:
    content = turbojpeg.encode(paint(3, 300, 300), quality=90)
    samples = [(content, content, number) for number in range(12)]
    fields = {"a": ImageField(), "b": ImageField(), "label": IntField()}
    path = write_ours(tmp_path / "a.beton", samples, fields)
    seen = set()
    for budget in ("6.4MB", "8.5MB"):  # two pages with images, and three
        index = compact(path, None, tmp_path / "b.beton", raw_budget=budget, num_workers=1)
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
    """The image that costs most is larger than a page as pixels, so it stays a JPEG."""
    rough = np.random.default_rng(2).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    small = [turbojpeg.encode(paint(n, 200, 250), quality=80) for n in range(20)]
    contents = [*small, turbojpeg.encode(rough, quality=90)]
    path = jpegs(tmp_path / "a.beton", contents)
    assert cost_order(path, np.arange(21))[0][0] == 20
    monkeypatch.setattr(planning, "LARGEST_PAGE", PAGE_SIZE)  # no beton can hold its pixels
    for budget, fewest in ((3 * PAGE_SIZE + 1000, 10), (1 << 30, 20)):
        index = compact(path, None, tmp_path / "b.beton", raw_budget=budget, num_workers=1)
        raw = index.labels()[index.column("image")["mode"] == 1]
        assert fewest <= len(raw) <= 20
        assert 20 not in raw
        assert index.page_size == PAGE_SIZE
        assert (tmp_path / "b.beton").stat().st_size <= budget


def test_a_budget_with_shrunk_images_is_met_approximately(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.beton"
    compact(source, None, out, raw_budget=2 * PAGE_SIZE + 2000, max_resolution=120, num_workers=2)
    index = BetonIndex.open(out)
    assert out.stat().st_size <= 2 * PAGE_SIZE + 2000
    compact(source, None, tmp_path / "raw.beton", images="raw", max_resolution=120, num_workers=2)
    used = index.sample_bytes().sum() / BetonIndex.open(tmp_path / "raw.beton").sample_bytes().sum()
    assert used > 0.85


# Corrupt images.


@pytest.mark.parametrize(
    "options",
    [{"images": "raw"}, {"max_resolution": 100}, {"max_resolution": 100, "images": "raw"}],
)
@pytest.mark.parametrize("what", ["bytes", "size"])
def test_a_corrupt_image_is_named(
    what: str, options: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copyfile(source, tmp_path / "a.beton"))
    if what == "bytes":
        put(path, int(BetonIndex.open(source).column("image")["data_ptr"][7]), bytes(100))
    else:
        with damage(path) as parts:
            parts.metadata["f2"]["height"][7] += 1
    with pytest.raises(ValueError, match=r"^Cannot encode a\.beton, sample 7: "):
        compact(path, None, tmp_path / "out.beton", num_workers=2, **options)
    assert [each.name for each in tmp_path.iterdir()] == ["a.beton"]
    compact(path, np.delete(np.arange(36), 7), tmp_path / "out.beton", num_workers=2, **options)


# Baseline JPEGs.


def test_progressive_jpegs_become_baseline_with_the_same_pixels(tmp_path: Path) -> None:
    pictures = [paint(number, 300, 340) for number in range(1, 7)]
    kinds = cycle([{"progressive": True}, {}, {"progressive": True, "subsampling": 0}])
    contents = [jpeg(each, quality=95, **kind) for each, kind in zip(pictures, kinds, strict=False)]
    path = jpegs(tmp_path / "a.beton", contents)
    index = compact(path, None, tmp_path / "b.beton", baseline=True, num_workers=2)
    assert read_images(index.path, True) == read_images(path, True)
    data = index.path.read_bytes()
    for sample, (label, image) in enumerate(
        zip(index.labels().tolist(), index.column("image"), strict=True)
    ):
        stored = stored_at(index, data, sample, image["data_ptr"])
        assert is_baseline(stored)
        assert (stored == contents[label]) == is_baseline(contents[label])
    assert index_jpegs(path)["other"] == 4
    assert index_jpegs(index)["indexed"] == 6
    shrunk = compact(
        path, None, tmp_path / "c.beton", baseline=True, max_resolution=100, num_workers=1
    )
    assert max(shrunk.column("image")["width"]) == 100


def test_the_indexes_of_jpegs_that_keep_their_bytes_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [paint(number, 300, 340) for number in range(6)]
    contents = [
        jpeg(each, quality=95, progressive=number % 3 == 0) for number, each in enumerate(pictures)
    ]
    path, made = jpegs(tmp_path / "a.beton", contents), []
    assert index_jpegs(path)["indexed"] == 4
    make = index_module.index_jpeg
    monkeypatch.setattr(
        index_module, "index_jpeg", lambda data, *rest: made.append(data.size) or make(data, *rest)
    )
    index = compact(path, None, tmp_path / "b.beton", baseline=True, num_workers=1)
    data = index.path.read_bytes()
    images = zip(index.labels().tolist(), index.column("image"), strict=True)
    stored = {
        label: stored_at(index, data, sample, image["data_ptr"])
        for sample, (label, image) in enumerate(images)
    }
    assert sorted(made) == sorted(len(stored[label]) for label in (0, 3))
    assert index_jpegs(index)["indexed"] == 6


def test_a_damaged_progressive_jpeg_is_named(tmp_path: Path) -> None:
    content = jpeg(paint(3, 120, 130), progressive=True)
    damaged = content[:-400] + bytes(398) + content[-2:]
    path = jpegs(tmp_path / "a.beton", [content, damaged])
    with pytest.raises(ValueError, match=r"^Cannot encode a\.beton, sample 1: "):
        compact(path, None, tmp_path / "b.beton", baseline=True, num_workers=1)
