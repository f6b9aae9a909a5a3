"""Fixtures of many tests: small image betons, damaged betons, and a guard against hanging."""

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.ffcv_import import import_ffcv
from tests.support.images import write_images

import_ffcv()  # the fast way, before a test imports ffcv itself
torch.set_num_threads(1)  # parallel test processes with more threads wait for each other

pytest_plugins = ["tests.support.betons", "tests.support.features", "tests.support.labels"]

# The same examples in every run; no time limit, since the first one may compile kernels.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

NUM_CLASSES = 10
PER_CLASS = 12
CLASS_NAMES = [f"class {number}" for number in range(NUM_CLASSES)]
HANGS_AFTER = 120.0  # seconds; guarded calls take at most two on an idle machine


def pytest_collection_finish() -> None:
    """Exempt what is imported by now from garbage collection, which tests ask for often."""
    gc.freeze()


@dataclass(frozen=True)
class Images:
    """A beton of images, with the images and labels that were written."""

    path: Path
    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]

    @property
    def index(self) -> BetonIndex:
        return BetonIndex.open(self.path)


@dataclass(frozen=True)
class Colours(Images):
    """Images of one colour each, so that every pixel of any crop identifies the sample."""

    def ids_of(self, batch: Any) -> NDArray[np.int64]:
        """Return the sample ids of a batch of pixels (B, H, W, 3), after checking every pixel."""
        pixels = np.asarray(batch)
        ids = pixels[:, 0, 0, 0].astype(np.int64) // 2
        np.testing.assert_array_equal(pixels, np.broadcast_to(paint(ids), pixels.shape))
        return ids


def paint(ids: Any) -> NDArray[np.uint8]:
    """Return the colours (B, 1, 1, 3) of sample ids up to 127."""
    ids = np.asarray(ids)
    colours = np.stack((2 * ids, 255 - 2 * ids, 37 * ids % 256), axis=-1)
    return colours.astype(np.uint8)[:, None, None]


def shuffled_labels(seed: int, per_class: int = PER_CLASS) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(NUM_CLASSES), per_class))


def write_colours(path: Path, side: int, **options: Any) -> Colours:
    labels = shuffled_labels(1)
    images = [np.tile(paint([number])[0], (side, side, 1)) for number in range(len(labels))]
    write_images(path, images, labels, class_names=CLASS_NAMES, **options)
    return Colours(path, images, labels)


def write_photos(path: Path, seed: int, per_class: int = PER_CLASS) -> Images:
    """Write JPEGs of 40 to 48 pixels: one wave pattern per class, in colours of each image."""
    rng = np.random.default_rng(seed)
    labels, images = shuffled_labels(seed, per_class), []
    for label in labels:
        rows, columns = np.mgrid[: rng.integers(40, 49), : rng.integers(40, 49)]
        angle = np.pi * label / NUM_CLASSES
        wave = np.sin(0.5 * (rows * np.sin(angle) + columns * np.cos(angle)))[..., None]
        images.append((127.5 + 100 * wave * rng.uniform(0.5, 1.0, 3)).astype(np.uint8))
    write_images(path, images, labels, mode="jpg", class_names=CLASS_NAMES)
    return Images(path, images, labels)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Colours:
    """10 classes x 12 raw images of 16 x 16 pixels, each of one colour."""
    return write_colours(tmp_path_factory.mktemp("colours") / "colours.beton", side=16)


@pytest.fixture(scope="session")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Colours:
    """The images of `colours` at 160 x 160 pixels, which fill five pages."""
    path = tmp_path_factory.mktemp("paged") / "paged.beton"
    return write_colours(path, side=160, page_size=1 << 21)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """10 classes x 12 JPEGs of 40 to 48 pixels."""
    return write_photos(tmp_path_factory.mktemp("photos") / "photos.beton", seed=2)


@pytest.fixture(scope="session")
def other_photos(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Other images of the same classes, 4 of each."""
    return write_photos(tmp_path_factory.mktemp("other") / "other.beton", seed=3, per_class=4)


@pytest.fixture
def unfinished(photos: Images, tmp_path: Path) -> Path:
    """The file of a stopped writer, without an allocation table."""
    data = bytearray(photos.path.read_bytes())
    data[16:24] = bytes(8)
    path = tmp_path / "unfinished.beton"
    path.write_bytes(data)
    return path


@pytest.fixture
def truncated(photos: Images, tmp_path: Path) -> Path:
    """The first half of a beton."""
    data = photos.path.read_bytes()
    path = tmp_path / "truncated.beton"
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.fixture
def guarded() -> Callable[[Callable[[], Any]], Any]:
    """Call a function, and fail if it hangs."""

    def call(function: Callable[[], Any]) -> Any:
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["result"] = function()
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(HANGS_AFTER)
        if thread.is_alive():
            pytest.fail(f"{function} hangs")
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    return call
