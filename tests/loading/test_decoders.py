"""The decoders make the pixels of ffcv's C code; epoch, seed and sample alone change them."""

from typing import Any

import ffcv.fields.rgb_image as stock
import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.libffcv import imdecode, resize_crop
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex, PrunedLoader, Selection, write_beton
from dp4tl_ffcv.loading.decoding.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
)
from tests.conftest import Images
from tests.support.crops import random_crops, random_flips
from tests.support.images import picture
from tests.support.loading import CACHE_OPTIONS, ORDER_NAMES, loader_of, only

SIZES = [(64, 64), (48, 80), (97, 61), (40, 40), (33, 120), (130, 47), (71, 72), (90, 160)]
TINY = [(1, 1), (1, 50), (50, 1), (2, 3), (7, 5), (3, 200), (200, 3), (16, 16)]
SMART_THRESHOLD = 3 * 65 * 65  # bytes, above which images are JPEGs in the mixed file
OUTPUTS = [(24, 24), (32, 17), (100, 140), (1, 1)]
SEED = 9
RATIO = 224 / 256


def decoded(index: BetonIndex) -> list[NDArray[np.uint8]]:
    """Decode all images as ffcv does."""
    data = np.fromfile(index.path, dtype=np.uint8)
    images = []
    for sample, extent in zip(index.column("image"), index.extents(np.arange(len(index.metadata))),
                              strict=True):  # fmt: skip
        height, width = int(sample["height"]), int(sample["width"])
        source = data[int(extent["ptr"]) :][: int(extent["size"])]
        image = np.zeros((height, width, 3), dtype=np.uint8)
        if sample["mode"] == stock.IMAGE_MODES["jpg"]:
            assert imdecode(source, image, height, width, height, width) == 0
        else:
            image[:] = source.reshape(image.shape)
        images.append(image)
    return images


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Images]:
    """The same images as JPEGs, raw, and mixed; the last eight are tiny."""
    folder, sizes = tmp_path_factory.mktemp("mixed"), [*SIZES, *SIZES, *TINY]
    images = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    labels = np.arange(len(images)) % 3
    samples = [(image, labels[number], number) for number, image in enumerate(images)]
    found = {}
    for mode in ("jpg", "raw", "smart"):
        image = RGBImageField(write_mode=mode, smart_threshold=SMART_THRESHOLD)
        fields = {"image": image, "label": IntField(), "identifier": IntField()}
        index = write_beton(folder / f"{mode}.beton", samples, fields, seed=None)
        found[mode] = Images(index.path, decoded(index), labels)
    assert 0 < found["smart"].index.column("image")["mode"].sum() < len(images)
    return found


@pytest.fixture(scope="module")
def mixed(datasets: dict[str, Images]) -> Images:
    return datasets["smart"]


def cropping(flip: float = 0.5) -> RandomResizedCropRGBImageDecoder:
    # Always the same arguments, to compile them once.
    return RandomResizedCropRGBImageDecoder((24, 24), flip=flip)


def decoding(dataset: Images, decoder: Any, batch_size: int = 5, **options: Any) -> PrunedLoader:
    """Return a loader of images and their ids."""
    pipelines = only(image=[decoder], identifier=[])
    return loader_of(dataset, batch_size, pipelines=pipelines, **{"seed": SEED, **options})


def epoch(loader: PrunedLoader) -> dict[int, NDArray[np.uint8]]:
    """Load the pixels of each sample."""
    found: dict[int, NDArray[np.uint8]] = {}
    for pixels, numbers in loader:
        for number, image in zip(numbers[:, 0].tolist(), pixels, strict=True):
            assert number not in found
            found[number] = image.copy()
    return found


def stacked(loader: PrunedLoader) -> NDArray[np.uint8]:
    """Load the pixels of all samples, by id."""
    found = epoch(loader)
    assert sorted(found) == list(range(len(found)))
    return np.stack([found[number] for number in sorted(found)])


def by_ffcv(
    dataset: Images, boxes: NDArray[np.int64], flips: Any, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Crop, resize and mirror as ffcv's C code does."""
    found = np.zeros((len(boxes), *size, 3), dtype=np.uint8)
    for image, (top, left, rows, columns), mirrored, out in zip(
        dataset.images, boxes.tolist(), flips, found, strict=True
    ):
        resize_crop(image, top, top + rows, left, left + columns, out)
        if mirrored:
            out[:] = out[:, ::-1].copy()
    return found


def assert_close(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
    """Check that pixels differ by at most one grey level, and that most are equal."""
    assert ours.shape == theirs.shape
    apart = np.abs(ours.astype(np.int64) - theirs)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.2


def ids_of(dataset: Images) -> NDArray[np.int64]:
    return np.arange(len(dataset.images))


def shapes_of(dataset: Images) -> tuple[list[int], list[int]]:
    heights, widths = zip(*(image.shape[:2] for image in dataset.images), strict=True)
    return list(heights), list(widths)


# The pixels of ffcv.


@pytest.mark.parametrize("mode", ["jpg", "raw", "smart"])
def test_random_crops_have_the_pixels_of_ffcv(mode: str, datasets: dict[str, Images]) -> None:
    dataset, decoder = datasets[mode], cropping()
    loader = decoding(dataset, decoder)
    for number, size in enumerate([*OUTPUTS, OUTPUTS[0]]):
        decoder.output_size = size
        boxes = random_crops(*shapes_of(dataset), ids_of(dataset), SEED, number)
        flips = random_flips(ids_of(dataset), SEED, number)
        assert 0 < flips.sum() < len(flips)
        assert_close(stacked(loader), by_ffcv(dataset, boxes, flips, size))


def test_crops_of_other_shapes_have_the_pixels_of_ffcv(mixed: Images) -> None:
    scale, ratio = (0.01, 0.3), (0.2, 6.0)
    decoder = RandomResizedCropRGBImageDecoder((20, 31), scale, ratio, view=3)
    boxes = random_crops(*shapes_of(mixed), ids_of(mixed), SEED, 0, scale, ratio, view=3)
    expected = by_ffcv(mixed, boxes, np.zeros(len(boxes)), (20, 31))
    assert_close(stacked(decoding(mixed, decoder)), expected)


@pytest.mark.parametrize("mode", ["jpg", "raw", "smart"])
def test_centre_crops_have_the_pixels_of_ffcv(mode: str, datasets: dict[str, Images]) -> None:
    dataset, decoder = datasets[mode], CenterCropRGBImageDecoder((24, 24), ratio=RATIO)
    boxes = np.array(
        [
            stock.get_center_crop(*image.shape[:2], None, max(RATIO, 1 / min(image.shape[:2])))
            for image in dataset.images
        ]
    )
    loader = decoding(dataset, decoder)
    for size in OUTPUTS:
        decoder.output_size = size
        expected = by_ffcv(dataset, boxes, np.zeros(len(boxes)), size)
        for _ in range(2):
            assert_close(stacked(loader), expected)


# What the pixels depend on.


@pytest.fixture(scope="module")
def epochs(mixed: Images) -> list[NDArray[np.uint8]]:
    """The pixels of two epochs, which other options must not change."""
    loader = decoding(mixed, cropping())
    return [stacked(loader) for _ in range(2)]


def test_pixels_change_with_epoch_and_seed(mixed: Images, epochs: Any) -> None:
    # Crops of very long images are often the centre.
    large = [
        number
        for number, image in enumerate(mixed.images)
        if min(image.shape[:2]) > 20 and max(image.shape[:2]) < 2 * min(image.shape[:2])
    ]
    assert len(large) >= 8
    others = [*epochs, stacked(decoding(mixed, cropping(), seed=SEED + 1))]
    for number, one in enumerate(others):
        for other in others[:number]:
            assert (one[large] != other[large]).any(axis=(1, 2, 3)).all()
    again = decoding(mixed, cropping())
    for expected in epochs:
        np.testing.assert_array_equal(stacked(again), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 24},
        {"batch_size": 7, "batches_ahead": 1},
        {"batch_size": 2, "batches_ahead": 9},
        {"num_workers": 1},
        {"num_workers": 1, "batch_size": 7, "cache": "extents", "order": "random"},
        {"batch_size": 3, "read_ahead": 5, "cache": "extents"},
        {"recompile": True},
        *({"cache": cache, "order": order} for cache in CACHE_OPTIONS for order in ORDER_NAMES),
    ],
    ids=str,
)
def test_pixels_do_not_depend_on_loading_options(options: Any, mixed: Images, epochs: Any) -> None:
    loader = decoding(mixed, cropping(), **options)
    for expected in epochs:
        np.testing.assert_array_equal(stacked(loader), expected)


def test_a_crop_does_not_depend_on_the_other_retained_samples(mixed: Images, epochs: Any) -> None:
    for chosen in (
        {"indices": [20, 3, 5, 11]},
        {"indices": [13]},
        {"selection": Selection.of_classes(mixed.index, [1])},
    ):
        loader = decoding(mixed, cropping(), batch_size=3, order="random", **chosen)
        for expected in epochs:
            found = epoch(loader)
            assert set(found) == set(loader.indices.tolist())
            for number, pixels in found.items():
                np.testing.assert_array_equal(pixels, expected[number])


def test_an_epoch_left_early_counts(mixed: Images, epochs: Any) -> None:
    loader = decoding(mixed, cropping())
    next(iter(loader))
    np.testing.assert_array_equal(stacked(loader), epochs[1])


def test_two_epochs_at_once_have_their_own_crops(mixed: Images, epochs: Any) -> None:
    loader = decoding(mixed, cropping())
    pairs = [
        (one.copy(), other.copy()) for (one, _), (other, _) in zip(loader, loader, strict=True)
    ]
    for expected, batches in zip(epochs, zip(*pairs, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(batches), expected)


# Memory.


def test_scratch_memory_grows_with_threads_not_with_samples(mixed: Images) -> None:
    sizes = {}
    for batch_size in (1, 8):
        loader = decoding(mixed, cropping(), batch_size=batch_size)
        memory = loader.graph.allocate_memory(batch_size, loader.batches_ahead + 2)
        buffers = [part for part in memory["operation"].values() if part is not None]
        assert not any(isinstance(part, tuple) for part in buffers)
        images = max(buffers, key=lambda buffer: buffer.nbytes)
        assert images.nbytes == 5 * batch_size * 24 * 24 * 3
        with_tables = sum(buffer.nbytes for buffer in buffers)
        assert with_tables - images.nbytes <= 5 * batch_size * 8  # the identifiers
        sizes[batch_size] = loader.memory_manager.new_workspace().scratch.shape
    assert sizes[1] == sizes[8]
    assert sizes[1][0] == 2


def test_scratch_memory_fits_the_largest_retained_image(mixed: Images) -> None:
    decoder = cropping()
    large = decoding(mixed, decoder).memory_manager.new_workspace().scratch.shape[1]
    assert large >= 3 * 200 * 160
    tiny = decoding(mixed, decoder, indices=[16, 19])
    assert tiny.memory_manager.new_workspace().scratch.shape[1] < large
    tiny.set_selection([7])  # 90 x 160
    assert tiny.memory_manager.new_workspace().scratch.shape[1] >= 3 * 90 * 160
    assert set(epoch(tiny)) == {7}
