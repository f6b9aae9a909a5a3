"""Write a source and its targets, made from scikit-learn's 1,797 handwritten digits.

Source: every digit in eight renderings, 80 classes `DIGIT-RENDERING`. Targets: digits in one of
these renderings, in other colours, noise and scale; the demo's shows all ten, upright. Source and
targets share no original image, nor do the splits of either. The source classes of a target's
digits in its rendering are known to be relevant to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv import BetonIndex, image_fields, write_beton
from dp4tl_ffcv.utils import one_line_errors

SIDE = 48  # pixels of every image
DATASETS = ("source", "target")
# Original images per digit and split. Each digit has at least 174 originals.
ORIGINALS = {
    "source": {"train": 70, "val": 10, "test": 10},
    "target": {"train": 20, "val": 20, "test": 44},
}

Mask = NDArray[np.float64]  # (SIDE, SIDE), 1 where there is ink
Pixels = NDArray[np.float64]  # (SIDE, SIDE, 3), in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write."""

    out: Path
    """Folder of the betons: source_train.beton to target_test.beton."""
    targets: tuple[str, ...] = ("target",)
    """Targets to write, of `target`, `target_rotated` and `target_few`."""
    seed: int = 0
    """Of the split by original image and of every random choice in the renderings."""
    variants: int = 1
    """Renderings of each original per source class, with different colours and jitter."""


def _bright_on_dark(mask: Mask, rng: np.random.Generator) -> Pixels:
    ink, paper = rng.uniform(0.6, 1.0, 3), rng.uniform(0.0, 0.35, 3)
    return _blend(mask, ink, np.broadcast_to(paper, (SIDE, SIDE, 3)))


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


def _outline(mask: Mask, rng: np.random.Generator) -> Pixels:
    return _bright_on_dark(_edges(mask), rng)


def _shifted(mask: Mask, rng: np.random.Generator) -> Pixels:
    ink = np.array([0.55, 0.85, 0.65]) + rng.uniform(-0.15, 0.15, 3)
    paper = np.array([0.35, 0.15, 0.3]) + rng.uniform(-0.1, 0.1, 3)
    pixels = _blend(mask, ink, np.broadcast_to(paper, (SIDE, SIDE, 3)))
    return pixels + rng.normal(0.0, 0.12, pixels.shape)


def _faded(mask: Mask, rng: np.random.Generator) -> Pixels:
    paper = rng.uniform(0.45, 0.55) + rng.uniform(-0.05, 0.05, 3)
    ink = paper + rng.uniform(0.12, 0.2)
    pixels = _blend(mask, ink, np.broadcast_to(paper, (SIDE, SIDE, 3)))
    return pixels + rng.normal(0.0, 0.03, pixels.shape)


def _shifted_outline(mask: Mask, rng: np.random.Generator) -> Pixels:
    return _shifted(_edges(mask), rng)


def _edges(mask: Mask) -> Mask:
    down, right = np.gradient(mask)
    edges: Mask = np.clip(4.0 * np.hypot(down, right), 0.0, 1.0)
    return edges


def _upright(mask: Mask) -> Mask:
    return mask


def _upside_down(mask: Mask) -> Mask:
    return np.rot90(mask, 2)


# Rendering: what is done to the shape, then how it is painted.
RENDERINGS: dict[str, tuple[Callable[[Mask], Mask], Callable[..., Pixels]]] = {
    "upright": (_upright, _bright_on_dark),
    "rotated": (np.rot90, _bright_on_dark),
    "mirrored": (np.fliplr, _bright_on_dark),
    "upside_down": (_upside_down, _bright_on_dark),
    "stripes": (_upright, _dark_on_stripes),
    "rotated_stripes": (np.rot90, _dark_on_stripes),
    "mirrored_checks": (np.fliplr, _dark_on_checks),
    "outline": (_upside_down, _outline),
}


@dataclass(frozen=True)
class Target:
    """Digits in one rendering, shifted."""

    rendering: str
    """Of the source classes that are relevant."""
    paint: Callable[..., Pixels]
    """Takes the place of the rendering's own: the shift."""
    digits: int = 10
    """The first so many, which are its classes."""


TARGETS = {
    "target": Target("upright", _shifted),
    "target_rotated": Target("rotated", _faded),
    "target_few": Target("outline", _shifted_outline, digits=5),
}
CLASS_NAMES = {
    "source": [f"{digit}-{rendering}" for rendering in RENDERINGS for digit in range(10)],
    **{name: list(map(str, range(target.digits))) for name, target in TARGETS.items()},
}


@dataclass(frozen=True)
class RenderedDigits(Sequence[tuple[NDArray[np.uint8], int, int]]):
    """Renders one image when it is asked for; the same image every time."""

    originals: NDArray[np.float64]  # (1797, 8, 8), 0 to 1
    items: list[tuple[int, int]]  # original, class id
    dataset: str
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[NDArray[np.uint8], int, int]:  # type: ignore[override]  # writers ask for one at a time
        original, label = self.items[position]
        rng = np.random.default_rng((*self.seed, position))
        if self.dataset == "source":
            turn, paint = list(RENDERINGS.values())[label // 10]
            mask = turn(_draw(self.originals[original], rng.uniform(0.8, 1.1), rng))
        else:
            target = TARGETS[self.dataset]
            turn, paint = RENDERINGS[target.rendering][0], target.paint
            mask = turn(_draw(self.originals[original], rng.uniform(0.65, 0.9), rng))
        pixels = np.clip(paint(mask, rng), 0.0, 1.0)
        return np.round(255.0 * pixels).astype(np.uint8), label, original


def write(config: Config) -> dict[str, BetonIndex]:
    """Write three betons for the source and each target; return their indices by `DATASET_SPLIT`.

    Raises:
        ValueError: there is no such target.
    """
    if unknown := set(config.targets) - set(TARGETS):
        raise ValueError(
            f"`targets` must be among {', '.join(TARGETS)}; got {', '.join(sorted(unknown))}. "
            "Choose of these."
        )
    from sklearn.datasets import load_digits  # an extra that only the demo needs

    digits = load_digits()
    originals = digits.images / 16.0
    parts = _split_originals(digits.target, config.seed)
    fields = image_fields(jpeg_quality=95)
    written = {}
    for dataset, split in product(("source", *config.targets), ORIGINALS["source"]):
        kind = "source" if dataset == "source" else "target"
        members = parts[kind, split]
        repeats = config.variants if (dataset, split) == ("source", "train") else 1
        num_classes = len(CLASS_NAMES[dataset])
        items = [
            (int(original), int(digits.target[original]) + 10 * rendering)
            for rendering in range(-(-num_classes // 10))
            for original in np.repeat(members, repeats)
            if digits.target[original] < num_classes
        ]
        number = 0 if kind == "source" else 1 + list(TARGETS).index(dataset)
        seed = (config.seed, number, list(ORIGINALS[kind]).index(split))
        name = f"{dataset}_{split}"
        written[name] = write_beton(
            config.out / f"{name}.beton",
            RenderedDigits(originals, items, dataset, seed),
            fields,
            class_names=CLASS_NAMES[dataset],
            written_by={
                "writer": "digits",
                "dataset": dataset,
                "split": split,
                "seed": config.seed,
                "variants": repeats,
            },
        )
    return written


def relevant_classes(target: str = "target") -> NDArray[np.bool_]:
    """Return which source classes are a target's digits in its rendering, `(80,)`; for judging."""
    rendering = TARGETS[target].rendering
    relevant = {f"{digit}-{rendering}" for digit in CLASS_NAMES[target]}
    return np.array([name in relevant for name in CLASS_NAMES["source"]])


def _split_originals(digits: NDArray[Any], seed: int) -> dict[tuple[str, str], NDArray[np.int64]]:
    """Deal the originals of each digit out to the six betons; no two share one."""
    parts: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    rng = np.random.default_rng(seed)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(digits == digit))
        for dataset, splits in ORIGINALS.items():
            for split, count in splits.items():
                parts.setdefault((dataset, split), []).append(members[:count])
                members = members[count:]
    return {key: np.concatenate(chunks) for key, chunks in parts.items()}


def _draw(original: NDArray[np.float64], scale: float, rng: np.random.Generator) -> Mask:
    """Enlarge an 8 x 8 original, slightly turned, scaled and moved."""
    angle = np.deg2rad(rng.uniform(-8.0, 8.0))
    size = 0.75 * SIDE * scale  # pixels that the 8 x 8 original covers
    step = 8.0 / size
    cosine, sine = step * np.cos(angle), step * np.sin(angle)
    middle = SIDE / 2 + rng.uniform(-2.0, 2.0, 2)
    # PIL maps output to input pixels: turn and scale about the middle, then go to (4, 4).
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


def main() -> None:
    """Write the betons that the command line asks for."""
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors("writers.digits"):
        written = write(config)
    for name, index in written.items():
        print(f"{name}: {index.num_samples} images, {index.num_classes} classes -> {index.path}")


if __name__ == "__main__":
    main()
