"""The betons of the benchmarks: reproducible, with ImageNet's statistics."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import dataset
from benchmarks.harness.dataset import Images, class_sizes, prepare, retain, write_tables
from dp4tl_ffcv import BetonIndex, read_image

SMALL = {"num_samples": 300, "num_classes": 12, "distinct": 36}
TABLES = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def index(folder: Path) -> BetonIndex:
    return BetonIndex.open(prepare(Images(**SMALL, long_side=400), folder))


@pytest.fixture(scope="module")
def tables(folder: Path) -> BetonIndex:
    return BetonIndex.open(write_tables(TABLES, folder))


def test_images_have_the_bytes_and_shapes_of_imagenet(index: BetonIndex, folder: Path) -> None:
    larger = BetonIndex.open(prepare(Images(**SMALL, long_side=500), folder))
    assert index.sample_bytes().mean() == pytest.approx(70_000, rel=0.15)
    assert larger.sample_bytes().mean() == pytest.approx(110_000, rel=0.15)
    for found, long_side in ((index, 400), (larger, 500)):
        sides = np.stack((found.column("image")["width"], found.column("image")["height"]), axis=1)
        assert (sides.max(axis=1) == long_side).all()
        ratios = sides.max(axis=1) / sides.min(axis=1)
        assert set(ratios.round(2)) == {1.33, 1.5}
        assert 0.6 < (sides[:, 0] > sides[:, 1]).mean() < 0.95


def test_raw_images_show_the_same_as_the_jpegs(index: BetonIndex, folder: Path) -> None:
    raw = BetonIndex.open(prepare(Images(**SMALL, long_side=400, mode="raw"), folder))
    np.testing.assert_array_equal(raw.labels(), index.labels())
    for sample in (0, 17, 299):
        pixels, shown = read_image(raw, sample), read_image(index, sample)
        assert pixels.shape == shown.shape
        assert np.corrcoef(pixels.reshape(-1), shown.reshape(-1))[0, 1] > 0.9  # grain loses its hue


def test_the_same_arguments_make_the_same_file(
    index: BetonIndex, folder: Path, tmp_path: Path
) -> None:
    images = Images(**SMALL, long_side=400)
    assert prepare(images, tmp_path).read_bytes() == index.path.read_bytes()
    other = BetonIndex.open(prepare(Images(**SMALL, long_side=400, seed=1), tmp_path))
    assert other.fingerprint != index.fingerprint
    written = index.path.stat()
    assert prepare(images, folder).stat() == written  # not written again


def test_samples_neither_cross_a_page_nor_overlap(index: BetonIndex, tables: BetonIndex) -> None:
    for found in (index, tables):
        starts = found.allocations["ptr"].astype(np.int64)
        ends = starts + found.allocations["size"].astype(np.int64)
        assert (starts // found.page_size == (ends - 1) // found.page_size).all()
        assert (starts[1:] >= ends[:-1]).all()
        lost = (starts[1:] - ends[:-1]).sum()
        assert lost < 0.05 * ends[-1]


def test_the_samples_are_shuffled(index: BetonIndex) -> None:
    labels = index.labels()
    assert (np.diff(labels) == 0).mean() < 0.2
    sizes = class_sizes(len(labels), 12)
    np.testing.assert_array_equal(np.sort(np.bincount(labels)), np.sort(sizes))


def test_class_sizes_have_imagenets_proportions() -> None:
    sizes = class_sizes(dataset.IMAGENET_SAMPLES, 1000)
    assert sizes.sum() == dataset.IMAGENET_SAMPLES
    assert (sizes.min(), sizes.max()) == (732, 1300)
    assert (sizes == 1300).sum() == pytest.approx(895, abs=10)
    fewer = class_sizes(6000, 100)
    assert fewer.sum() == 6000
    assert fewer.min() / fewer.max() == pytest.approx(732 / 1300, abs=0.03)


def test_a_beton_of_tables_uses_no_disk_space_for_images(tables: BetonIndex) -> None:
    status = tables.path.stat()
    assert tables.num_samples == TABLES
    assert tables.num_classes == 1000
    assert tables.sample_bytes().mean() == pytest.approx(110_000, rel=1e-3)
    assert status.st_size > TABLES * 110_000
    assert 512 * status.st_blocks < 4e6


def test_classes_are_retained_whole(index: BetonIndex) -> None:
    labels = index.labels()
    ids = retain(labels, 0.25)
    kept = np.unique(labels[ids])
    assert len(kept) == 3
    np.testing.assert_array_equal(ids, np.flatnonzero(np.isin(labels, kept)))
    np.testing.assert_array_equal(retain(labels, 1.0), np.arange(300))
