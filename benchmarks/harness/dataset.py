"""Generate betons and folders of JPEG files with ImageNet's statistics from photographs.

scikit-learn and scikit-image ship a few photographs. The distinct images are crops of these at
several scales, in ImageNet's shapes. Sharpening and grain give them ImageNet's bytes per pixel at
JPEG quality 90. A file repeats the images in random order until it is large enough for a figure.
Nothing is downloaded.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import image_fields, write_beton
from dp4tl_ffcv.beton import format
from dp4tl_ffcv.compaction.plan import place
from dp4tl_ffcv.utils import atomic_open

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
MEAN_BYTES = 110_000  # per ImageNet image of 500 pixels

# Width : height of ImageNet's images, and the share of each, reduced to two shapes and two
# orientations.
SHAPES = np.array([[4, 3], [3, 2], [3, 4], [2, 3]])
SHAPE_SHARES = (0.5, 0.3, 0.12, 0.08)
# ImageNet: 895 of 1000 classes have 1300 images, the smallest has 732; 1,281,167 in all.
FULL_CLASSES, FULL_SIZE, SMALLEST_SIZE, IMAGENET_SAMPLES = 0.895, 1300, 732, 1_281_167

_FORMAT = 2  # part of the names of cached files: raise it when their content changes
_FIELDS = {"image": 2, "label": 1, "identifier": 1}


@dataclass(frozen=True, kw_only=True)
class Images:
    num_samples: int
    long_side: int
    """Longer side, in pixels."""
    mode: str = "jpg"
    num_classes: int = 100
    distinct: int = 256
    seed: int = 0

    @property
    def name(self) -> str:
        parts = (self.num_samples, self.num_classes, self.distinct, self.seed, _FORMAT)
        return f"{self.mode}{self.long_side}_{'_'.join(map(str, parts))}.beton"


def prepare(images: Images, folder: Path) -> Path:
    """Return the beton of `images` in `folder`; write it if it is missing."""
    path = folder / images.name
    if not path.exists():
        contents, rng = _draw_all(images)
        labels = _shuffled_labels(images.num_samples, images.num_classes, rng).tolist()
        samples = list(zip(contents, labels, range(images.num_samples), strict=True))
        fields = image_fields(mode=images.mode)
        write_beton(path, samples, fields, seed=None, page_size=PAGE_SIZE, num_workers=0)
    return path


def prepare_files(images: Images, folder: Path) -> Path:
    """Return the folder of the JPEG files of `images`, `000000.jpg` and so on.

    Repeated images are separate files, not links, so that each has its own pages in memory.
    """
    path = folder / Path(images.name).stem
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as unfinished:
            made = Path(unfinished) / path.name
            made.mkdir()
            for number, content in enumerate(_draw_all(images)[0]):
                (made / f"{number:06}.jpg").write_bytes(content)
            made.rename(path)
    return path


def write_tables(num_samples: int, folder: Path, *, num_classes: int = 1000, seed: int = 0) -> Path:
    """Return a beton with complete tables and holes instead of images of 500 pixels."""
    path = folder / f"tables_{num_samples}_{num_classes}_{seed}_{_FORMAT}.beton"
    if path.exists():
        return path
    rng = np.random.default_rng((seed, num_samples))
    columns = [format.FIELD_METADATA[type_id] for type_id in _FIELDS.values()]
    metadata = np.zeros(num_samples, dtype=format.metadata_dtype(columns))
    sides = np.array([_sides(500, shape) for shape in SHAPES])
    metadata["f0"]["width"], metadata["f0"]["height"] = sides[
        rng.choice(len(SHAPES), size=num_samples, p=SHAPE_SHARES)
    ].T
    metadata["f1"] = _shuffled_labels(num_samples, num_classes, rng)
    metadata["f2"] = np.arange(num_samples)
    spread = np.exp(0.4 * rng.standard_normal(num_samples)).clip(0.1, 10)
    sizes = (MEAN_BYTES * spread / spread.mean()).astype(np.int64)
    descriptors = np.zeros(len(_FIELDS), dtype=format.FIELD)
    for row, (name, type_id) in zip(descriptors, _FIELDS.items(), strict=True):
        row["type_id"] = type_id
        row["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    tables = format.HEADER.itemsize + descriptors.nbytes + metadata.nbytes
    placed = place(sizes, tables, PAGE_SIZE)
    metadata["f0"]["data_ptr"] = placed.places
    header = format.header_bytes(len(_FIELDS), PAGE_SIZE, num_samples, placed.table_at)
    allocations = np.zeros(num_samples, dtype=format.ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(num_samples), placed.places
    allocations["size"] = sizes
    with atomic_open(path) as stream:
        stream.write(header + descriptors.tobytes() + metadata.tobytes())
        stream.seek(placed.table_at)
        stream.write(allocations.tobytes())
    return path


def retain(labels: NDArray[np.int64], keep: float, seed: int = 0) -> NDArray[np.int64]:
    """Return the sample ids, ascending, of a random fraction `keep` of the classes."""
    num_classes = int(labels.max()) + 1
    kept = np.random.default_rng(seed).permutation(num_classes)[: round(keep * num_classes)]
    return np.flatnonzero(np.isin(labels, kept))


def class_sizes(num_samples: int, num_classes: int) -> NDArray[np.int64]:
    """Return samples per class `(num_classes,)`, in ImageNet's proportions."""
    full = round(FULL_CLASSES * num_classes)
    rest = num_classes - full
    # This power gives the smaller classes the mean size that they have in ImageNet.
    ramp = np.linspace(0, 1, rest, endpoint=False) ** 0.45
    sizes = np.full(num_classes, float(FULL_SIZE))
    sizes[:rest] = SMALLEST_SIZE + (FULL_SIZE - SMALLEST_SIZE) * ramp
    exact = sizes * num_samples / sizes.sum()
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    short = num_samples - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1  # the largest remainders
    return counts


def _draw_all(images: Images) -> tuple[list[Any], np.random.Generator]:
    """Return the content of each sample, JPEG bytes or an RGB array, and the generator used."""
    rng = np.random.default_rng((images.seed, images.num_samples))
    chosen = rng.integers(images.distinct, size=images.num_samples)
    photographs = [_read(package, name) for package in PHOTOGRAPHS for name in PHOTOGRAPHS[package]]

    def draw(number: int) -> Any:
        picture = _draw(images, photographs, number)
        if images.mode == "raw":
            return np.ascontiguousarray(picture[..., ::-1])
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()

    numbers, places = np.unique(chosen, return_inverse=True)
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(draw, numbers.tolist()))
    return [contents[place] for place in places], rng


def _read(package: str, name: str) -> NDArray[np.uint8]:
    (folder,) = import_module(package).__path__
    return cv2.imdecode(np.fromfile(Path(folder) / name, dtype=np.uint8), cv2.IMREAD_COLOR)


def _draw(images: Images, photographs: Sequence[NDArray[np.uint8]], number: int) -> NDArray[Any]:
    """Return distinct image `number` (height, width, BGR)."""
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
    picture = cv2.resize(crop, (width, height), interpolation=filtering)
    blurred = cv2.GaussianBlur(picture, (0, 0), sigmaX=1.0)
    sharp = cv2.addWeighted(picture, 3.0, blurred, -2.0, 0)
    # The strength of the grain differs between images, as between cameras.
    grain = rng.uniform(0, 32) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(sharp + grain + 0.5, 0, 255).astype(np.uint8)


def _sides(long_side: int, shape: NDArray[np.int64]) -> tuple[int, int]:
    width, height = np.rint(long_side * shape / shape.max()).astype(int)
    return int(width), int(height)


def _shuffled_labels(
    num_samples: int, num_classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    sizes = rng.permutation(class_sizes(num_samples, num_classes))
    return rng.permutation(np.repeat(np.arange(num_classes), sizes))
