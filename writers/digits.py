"""Write a source and small targets made from scikit-learn's 1,797 handwritten digits.

The source has every digit in eight renderings, which make 80 classes `DIGIT-RENDERING`. A target
has digits in one of these renderings, with other colours, noise and scale; the demo's target has
all ten digits, upright. So the relevant source classes are known: the target's digits in the
target's rendering. Source and targets share no original image, and neither do their splits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_choice

from .components.common import SPLITS, already_written, run
from .components.draw import draw_by_class

SIDE = 48  # pixels
# Original images per digit and split. Each digit has at least 174.
ORIGINALS = {
    ("source", "train"): 70,
    ("source", "val"): 10,
    ("source", "test"): 10,
    ("target", "train"): 20,
    ("target", "val"): 20,
    ("target", "test"): 44,
}

Mask = NDArray[np.float64]  # (SIDE, SIDE), 1 where there is ink
Pixels = NDArray[np.float64]  # (SIDE, SIDE, 3), in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the writer."""

    out: Path
    """Folder for the betons source_train.beton to target_test.beton."""
    targets: tuple[str, ...] = ("target",)
    """Targets to write: target, target_rotated, target_few."""
    seed: int = 0
    """Seed of the split of the originals and of the renderings."""
    variants: int = 1
    """Images of each original per source class, with different colours and jitter."""
    num_workers: int | None = None
    """Worker processes. None: one per core. 0 works in this process."""


def _bright_on_dark(mask: Mask, rng: np.random.Generator) -> Pixels:
    ink, paper = rng.uniform(0.6, 1.0, 3), rng.uniform(0.0, 0.35, 3)
    return _blend(mask, ink, paper)


def _dark_on_stripes(mask: Mask, rng: np.random.Generator) -> Pixels:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 9)
    wave = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period)
    light, dim = rng.uniform(0.75, 1.0, 3), rng.uniform(0.45, 0.7, 3)
    paper = np.where(wave[..., None] > 0, light, dim)
    return _blend(mask, rng.uniform(0.0, 0.25, 3), paper)


def _dark_on_checks(mask: Mask, rng: np.random.Generator) -> Pixels:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    cell = rng.integers(4, 8)
    odd = ((rows // cell + columns // cell) % 2)[..., None]
    paper = np.where(odd == 1, rng.uniform(0.7, 1.0, 3), rng.uniform(0.4, 0.6, 3))
    return _blend(mask, rng.uniform(0.0, 0.2, 3), paper)


def _shifted(mask: Mask, rng: np.random.Generator) -> Pixels:
    ink = np.array([0.55, 0.85, 0.65]) + rng.uniform(-0.15, 0.15, 3)
    paper = np.array([0.35, 0.15, 0.3]) + rng.uniform(-0.1, 0.1, 3)
    pixels = _blend(mask, ink, paper)
    return pixels + rng.normal(0.0, 0.12, pixels.shape)


def _faded(mask: Mask, rng: np.random.Generator) -> Pixels:
    paper = rng.uniform(0.45, 0.55) + rng.uniform(-0.05, 0.05, 3)
    ink = paper + rng.uniform(0.12, 0.2)
    pixels = _blend(mask, ink, paper)
    return pixels + rng.normal(0.0, 0.03, pixels.shape)


_upright = np.asarray
_upside_down = partial(np.rot90, k=2)


def _outline_upside_down(mask: Mask) -> Mask:
    down, right = np.gradient(_upside_down(mask))
    edges: Mask = np.clip(4.0 * np.hypot(down, right), 0.0, 1.0)
    return edges


# How each rendering changes the shape, and how it paints the shape.
RENDERINGS: dict[str, tuple[Callable[[Mask], Mask], Callable[..., Pixels]]] = {
    "upright": (_upright, _bright_on_dark),
    "rotated": (np.rot90, _bright_on_dark),
    "mirrored": (np.fliplr, _bright_on_dark),
    "upside_down": (_upside_down, _bright_on_dark),
    "stripes": (_upright, _dark_on_stripes),
    "rotated_stripes": (np.rot90, _dark_on_stripes),
    "mirrored_checks": (np.fliplr, _dark_on_checks),
    "outline": (_outline_upside_down, _bright_on_dark),
}


@dataclass(frozen=True)
class Target:
    """Digits in one rendering, painted differently."""

    rendering: str
    """Rendering of the relevant source classes."""
    paint: Callable[..., Pixels]
    """Replaces the rendering's own paint."""
    digits: int = 10
    """Number of classes, from digit 0."""


TARGETS = {
    "target": Target("upright", _shifted),
    "target_rotated": Target("rotated", _faded),
    "target_few": Target("outline", _shifted, digits=5),
}
CLASS_NAMES = {
    "source": [f"{digit}-{rendering}" for rendering in RENDERINGS for digit in range(10)],
    **{name: list(map(str, range(target.digits))) for name, target in TARGETS.items()},
}


def _rendered(
    images: NDArray[np.float64],
    originals: NDArray[np.int64],
    labels: NDArray[np.int64],
    dataset: str,
    seed: tuple[int, ...],
) -> utils.LazyImages:
    """Return samples that are rendered when they are read, with the same pixels each time."""

    def render(position: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng((*seed, position))
        if dataset == "source":
            shape, paint = list(RENDERINGS.values())[labels[position] // 10]
            scale = rng.uniform(0.8, 1.1)
        else:
            target = TARGETS[dataset]
            shape, paint = RENDERINGS[target.rendering][0], target.paint
            scale = rng.uniform(0.65, 0.9)
        mask = shape(_draw(images[originals[position]], scale, rng))
        pixels: Pixels = np.clip(paint(mask, rng), 0.0, 1.0)
        return np.round(255.0 * pixels).astype(np.uint8)

    return utils.LazyImages(render, labels, originals)


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write the betons of the source and of each target; return the indices by `DATASET_SPLIT`."""
    for target in config.targets:
        check_choice("targets", target, TARGETS)
    from sklearn.datasets import load_digits

    digits = load_digits()
    *groups, _ = draw_by_class(digits.target, lambda _: [*ORIGINALS.values()], config.seed)
    parts = dict(zip(ORIGINALS, groups, strict=True))
    fields = dp4tl_ffcv.image_fields(jpeg_quality=95)
    written = {}
    for dataset, split in product(("source", *config.targets), SPLITS):
        kind = "source" if dataset == "source" else "target"
        repeats = config.variants if (dataset, split) == ("source", "train") else 1
        num_classes = len(CLASS_NAMES[dataset])
        numbers = np.repeat(parts[kind, split], repeats)
        numbers = numbers[digits.target[numbers] < num_classes]
        first_ids = np.arange(0, num_classes, 10)[:, None]  # of each rendering
        labels = (first_ids + digits.target[numbers]).ravel()
        numbers = np.tile(numbers, len(first_ids))
        stream = 0 if kind == "source" else 1 + list(TARGETS).index(dataset)
        seed = (config.seed, stream, SPLITS.index(split))
        name = f"{dataset}_{split}"
        path = config.out / f"{name}.beton"
        written_by = {
            "writer": "digits",
            "dataset": dataset,
            "split": split,
            "seed": config.seed,
            "variants": repeats,
        }
        class_names = CLASS_NAMES[dataset]
        written[name] = already_written(path, written_by, class_names) or dp4tl_ffcv.write_beton(
            path,
            _rendered(digits.images / 16.0, numbers, labels, dataset, seed),
            fields,
            class_names=class_names,
            written_by=written_by,
            num_workers=config.num_workers,
        )
    return written


def relevant_classes(target: str = "target") -> NDArray[np.bool_]:
    """Return whether each of the 80 source classes is one of a target's digits in its rendering."""
    rendering = TARGETS[target].rendering
    relevant = {f"{digit}-{rendering}" for digit in CLASS_NAMES[target]}
    return np.array([name in relevant for name in CLASS_NAMES["source"]])


def _draw(original: NDArray[np.float64], scale: float, rng: np.random.Generator) -> Mask:
    """Enlarge an 8 x 8 original, slightly rotated, scaled and moved."""
    from PIL import Image

    angle = np.deg2rad(rng.uniform(-8.0, 8.0))
    size = 0.75 * SIDE * scale  # pixels that the 8 x 8 original covers
    step = 8.0 / size
    cosine, sine = step * np.cos(angle), step * np.sin(angle)
    middle = SIDE / 2 + rng.uniform(-2.0, 2.0, 2)
    # PIL maps output to input pixels: rotate and scale about the middle, then move it to (4, 4).
    matrix = (
        cosine, sine, 4.0 - cosine * middle[0] - sine * middle[1],
        -sine, cosine, 4.0 + sine * middle[0] - cosine * middle[1],
    )  # fmt: skip
    image = Image.fromarray(original.astype(np.float32))
    drawn = image.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(drawn, dtype=np.float64), 0.0, 1.0)


def _blend(mask: Mask, ink: Pixels, paper: Pixels) -> Pixels:
    blended: Pixels = mask[..., None] * ink + (1.0 - mask[..., None]) * paper
    return blended


if __name__ == "__main__":
    run(__name__)
