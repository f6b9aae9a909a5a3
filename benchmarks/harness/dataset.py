"""Betons and folders of JPEG files with ImageNet's statistics, made from photographs.

scikit-learn and scikit-image ship a few photographs. Crops of these at several scales, in
ImageNet's shapes, sharpened and with grain (which gives them the bytes per pixel that ImageNet has
at JPEG quality 90) make the distinct images; a file repeats their bytes in random order until it
is large enough for what it measures. Nothing is downloaded.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv.artifacts import atomic_open
from dp4tl_ffcv.beton import format

PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/grass.png",
        "data/gravel.png",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
    ),
}
PAGE_SIZE = 1 << 23  # ffcv's default
JPEG_QUALITY = 90
MEAN_EXTENT = 110_000  # bytes of an image of 500 pixels in ImageNet

# Width / height and how often ImageNet has it, as far as two shapes in two orientations go.
SHAPES = np.array([[4, 3], [3, 2], [3, 4], [2, 3]])
SHAPE_SHARES = (0.5, 0.3, 0.12, 0.08)
# ImageNet: 895 of 1000 classes have 1300 images, the smallest has 732; 1,281,167 in all.
FULL_CLASSES, FULL_SIZE, SMALLEST_SIZE, IMAGENET_SAMPLES = 0.895, 1300, 732, 1_281_167

_FORMAT = 1  # goes into the names of cached files: raise it when their content changes
_FIELDS = {"image": 2, "label": 1, "identifier": 1}
_COLUMNS = [format.FIELD_METADATA[type_id] for type_id in _FIELDS.values()]


@dataclass(frozen=True, kw_only=True)
class Images:
    """A beton of images to make."""

    num_samples: int
    long_side: int
    """Pixels of the longer side."""
    mode: str = "jpg"
    """`jpg` or `raw`."""
    num_classes: int = 100
    distinct: int = 256
    """Images that differ; their bytes are repeated."""
    seed: int = 0

    @property
    def name(self) -> str:
        parts = (self.num_samples, self.num_classes, self.distinct, self.seed, _FORMAT)
        return f"{self.mode}{self.long_side}_{'_'.join(map(str, parts))}.beton"


def prepare(images: Images, folder: Path) -> Path:
    """Return the beton of `images` in `folder`, written before or now."""
    path = folder / images.name
    if not path.exists():
        rows, blobs = _encode_all(images)
        rng = np.random.default_rng((images.seed, images.num_samples))
        chosen = rng.integers(images.distinct, size=images.num_samples)
        metadata = np.zeros(images.num_samples, dtype=format.metadata_dtype(_COLUMNS))
        metadata["f0"] = rows[chosen]
        metadata["f1"] = _shuffled_labels(images.num_samples, images.num_classes, rng)
        sizes = np.array([len(blob) for blob in blobs])[chosen]
        with atomic_open(path) as stream:
            starts = _write_tables(stream, metadata, sizes)
            for start, image in zip(starts, chosen, strict=True):
                stream.seek(start)
                stream.write(blobs[image])
    return path


def prepare_files(images: Images, folder: Path) -> Path:
    """Return the folder in `folder` of the JPEG files of `images`, written before or now.

    They are called `000000.jpg` on, and each has an inode and pages of its own.
    """
    path = folder / Path(images.name).stem
    if not path.exists():
        blobs = _encode_all(images)[1]
        rng = np.random.default_rng((images.seed, images.num_samples))
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as unfinished:
            made = Path(unfinished) / path.name
            made.mkdir()
            for number, image in enumerate(rng.integers(len(blobs), size=images.num_samples)):
                (made / f"{number:06}.jpg").write_bytes(blobs[image])
            made.rename(path)
    return path


def write_tables(num_samples: int, folder: Path, *, num_classes: int = 1000, seed: int = 0) -> Path:
    """Return a beton of which only the tables are written; holes stand where images would be."""
    path = folder / f"tables_{num_samples}_{num_classes}_{seed}_{_FORMAT}.beton"
    if not path.exists():
        rng = np.random.default_rng((seed, num_samples))
        metadata = np.zeros(num_samples, dtype=format.metadata_dtype(_COLUMNS))
        sides = np.array([_sides(500, shape) for shape in SHAPES])
        sides = sides[rng.choice(len(SHAPES), size=num_samples, p=SHAPE_SHARES)]
        metadata["f0"]["width"], metadata["f0"]["height"] = sides.T
        metadata["f1"] = _shuffled_labels(num_samples, num_classes, rng)
        spread = np.exp(0.4 * rng.standard_normal(num_samples)).clip(0.1, 10)
        with atomic_open(path) as stream:
            _write_tables(stream, metadata, (MEAN_EXTENT * spread / spread.mean()).astype(np.int64))
    return path


def retain(labels: NDArray[np.int64], keep: float, seed: int = 0) -> NDArray[np.int64]:
    """Return the ids of the samples of random classes, `keep` of all, ascending."""
    num_classes = int(labels.max()) + 1
    kept = np.random.default_rng(seed).permutation(num_classes)[: round(keep * num_classes)]
    return np.flatnonzero(np.isin(labels, kept))


def class_sizes(num_samples: int, num_classes: int) -> NDArray[np.int64]:
    """Share out `num_samples` over the classes as ImageNet does, in proportion."""
    full = round(FULL_CLASSES * num_classes)
    rest = num_classes - full
    # This power gives the classes below the full size the mean that they have in ImageNet.
    ramp = np.linspace(0, 1, rest, endpoint=False) ** 0.45
    sizes = np.full(num_classes, float(FULL_SIZE))
    sizes[:rest] = SMALLEST_SIZE + (FULL_SIZE - SMALLEST_SIZE) * ramp
    exact = sizes * num_samples / sizes.sum()
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    short = num_samples - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1  # the largest remainders
    return counts


# -- images ----------------------------------------------------------------------------------------
def _encode_all(images: Images) -> tuple[NDArray[Any], list[bytes]]:
    """Return the metadata `(distinct,)` of the distinct images, without places, and their bytes."""
    photographs = [_read(package, name) for package in PHOTOGRAPHS for name in PHOTOGRAPHS[package]]
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(partial(_draw, images, photographs), range(images.distinct)))
        blobs = list(pool.map(_encode_jpeg if images.mode == "jpg" else _encode_raw, pictures))
    rows = np.zeros(images.distinct, dtype=_COLUMNS[0])
    rows["mode"] = {name: mode for mode, name in format.IMAGE_MODES.items()}[images.mode]
    rows["height"], rows["width"] = np.array([picture.shape[:2] for picture in pictures]).T
    return rows, blobs


def _read(package: str, name: str) -> NDArray[np.uint8]:
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"the photographs of {package} are needed: install '.[dev]'")
    path = Path(spec.submodule_search_locations[0]) / name
    return cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)  # type: ignore[return-value]  # OpenCV's stub says any dtype


def _draw(images: Images, photographs: Sequence[NDArray[np.uint8]], number: int) -> NDArray[Any]:
    """Make one distinct image (height, width, BGR); `number` and seed determine it."""
    rng = np.random.default_rng((images.seed, number))
    photograph = photographs[number % len(photographs)]
    width, height = _sides(images.long_side, SHAPES[rng.choice(len(SHAPES), p=SHAPE_SHARES)])
    most = min(photograph.shape[1] / width, photograph.shape[0] / height)
    scale = most * rng.uniform(0.8, 1.0)
    crop_width, crop_height = int(scale * width), int(scale * height)
    left = rng.integers(photograph.shape[1] - crop_width + 1)
    top = rng.integers(photograph.shape[0] - crop_height + 1)
    crop = photograph[top : top + crop_height, left : left + crop_width]
    filtering = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return _sharpen(cv2.resize(crop, (width, height), interpolation=filtering), rng)


def _sharpen(picture: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Sharpen, and add grain of a strength that differs between images, as cameras do."""
    blurred = cv2.GaussianBlur(picture, (0, 0), sigmaX=1.0)
    sharp = cv2.addWeighted(picture, 3.0, blurred, -2.0, 0)
    grain = rng.uniform(0, 32) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(sharp + grain + 0.5, 0, 255).astype(np.uint8)


def _sides(long_side: int, shape: NDArray[np.int64]) -> tuple[int, int]:
    """Return width and height."""
    width, height = np.rint(long_side * shape / shape.max()).astype(int)
    return int(width), int(height)


def _encode_jpeg(picture: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def _encode_raw(picture: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(picture[..., ::-1]).tobytes()  # betons hold RGB


# -- files -----------------------------------------------------------------------------------------
def _shuffled_labels(
    num_samples: int, num_classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    sizes = rng.permutation(class_sizes(num_samples, num_classes))
    return rng.permutation(np.repeat(np.arange(num_classes), sizes))


def _write_tables(
    stream: IO[bytes], metadata: NDArray[Any], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Write all but the images, and return where each of these starts."""
    header = np.zeros(1, dtype=format.HEADER)
    descriptors = np.zeros(len(_FIELDS), dtype=format.FIELD)
    for row, (name, type_id) in zip(descriptors, _FIELDS.items(), strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    tables = header.nbytes + descriptors.nbytes + metadata.nbytes
    starts = _place(sizes, _round_up(tables))
    end = _round_up(int(starts[-1] + sizes[-1]))
    header["version"], header["num_fields"] = format.VERSION, len(_FIELDS)
    header["page_size"], header["num_samples"] = PAGE_SIZE, len(metadata)
    header["alloc_table_ptr"] = end
    metadata["f0"]["data_ptr"] = starts
    metadata["f2"] = np.arange(len(metadata))
    allocations = np.zeros(len(metadata), dtype=format.ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(len(metadata)), starts
    allocations["size"] = sizes
    stream.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())
    stream.seek(end)
    stream.write(allocations.tobytes())
    return starts


def _place(sizes: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """Return where the extents start, one behind the other, none across two pages."""
    ends = np.cumsum(sizes)
    starts = ends - sizes
    moved = np.empty_like(starts)
    begin, page = 0, first
    while begin < len(sizes):
        end = int(np.searchsorted(ends, starts[begin] + PAGE_SIZE, side="right"))
        moved[begin:end] = starts[begin:end] - starts[begin] + page
        begin, page = end, page + PAGE_SIZE
    return moved


def _round_up(size: int) -> int:
    return math.ceil(size / PAGE_SIZE) * PAGE_SIZE
