"""Write betons of characters in many fonts: `--fonts FOLDER`. Classes are characters.

All fonts (.ttf, .otf, .ttc) below the folders are drawn: digits, letters of Latin, Greek, Cyrillic
and Hebrew, arrows, signs of mathematics and others. The longer side of each character takes 20/28
of the image, as in MNIST, and the character is in the middle. --ink says whether it is light on
dark, as in MNIST, or dark on light. Variable fonts are drawn once, as they are by default.

Look-alikes of several scripts are one class (A, Greek Α, Cyrillic А), and so are upper and lower
case that differ only by size (C and c, but not K and k). 0 is not O, and 1 is not l. A class is
called by its first character and its name in Unicode: `7`, `A`, `α alpha`, `→ rightwards arrow`.

Left out are:

- characters that a font lacks, or draws as blank, or like an earlier class: a box for what is
  missing, capitals for lower case;
- fonts whose characters do not resemble those of the other fonts, such as dingbats;
- images that differ from an earlier one of their class by at most 8 grey levels, root mean square
  at 16 x 16 pixels, so that copies and weights of a font do not count twice;
- classes with fewer than --min-per-class images.

The families of fonts are split at random: all images of a family are in source_train, source_val
or source_test. --target-fonts also writes the digits of these fonts as target_train, target_val
and target_test, with 40 %, 20 % and 40 % of the families. These families are not in the source,
nor are images that are like theirs. The identifier of an image is its position among the images
of all fonts, in the order of files and classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import dp4tl_ffcv
from dp4tl_ffcv import utils
from dp4tl_ffcv.utils import check_choice, check_int

from .components.characters import CLASSES, DIGITS, class_name
from .components.common import SPLITS, Options, check_no_stale, run, say, write_splits
from .components.draw import check_fractions, draw_by_class
from .components.fonts import draw_fonts, font_files
from .components.likeness import distinct, resemblance, signatures

_TARGET_SHARES = (0.4, 0.2, 0.4)  # of the families, for train, val and test
_RESEMBLES = 0.65  # dingbats have 0.5, handwriting 0.7 or more
_NUM_DIGITS = len(DIGITS.split())


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """Options of the writer."""

    fonts: tuple[Path, ...]
    """Folders of fonts. Other files in them are ignored."""
    target_fonts: tuple[Path, ...] = ()
    """Folders of fonts whose digits are the target, such as handwriting."""
    resolution: int = 32
    """Width and height of the images, in pixels, 16 to 128."""
    ink: Literal["light", "dark"] = "light"
    """Draw light characters on a dark ground, or dark ones on a light ground."""
    min_per_class: int = 150
    """Leave out classes with fewer source images."""
    max_per_class: int | None = None
    """Write at most this many training images of a class, drawn at random."""
    val: float = 0.1
    """Fraction of the families for validation."""
    test: float = 0.1
    """Fraction of the families for testing."""
    seed: int = 0
    """Seed of the splits, of --max-per-class and of the order of samples in the files."""


@dataclass(frozen=True)
class _Glyphs:
    """Images of characters, in the order of fonts and classes."""

    names: Sequence[str]
    """Path of each font's file."""
    families: NDArray[np.int64]
    """Number of each font's family, in the order of their names."""
    fonts: NDArray[np.int64]
    """Number of each image's font, (n,)."""
    labels: NDArray[np.int64]
    """Position of each image's class in `CLASSES`, (n,)."""
    images: NDArray[np.uint8]
    """Grey images, 255 where there is ink, (n, resolution, resolution)."""


def write(config: Config) -> dict[str, dp4tl_ffcv.BetonIndex]:
    """Write the splits of the source and of the target and return the index of each.

    Raises:
        ValueError: an option is out of range, there are no fonts, no class has enough images, no
            family of fonts is left for training, or FreeType refuses a font and `on_error` is
            `raise`.
    """
    _check(config)
    held_out = font_files(config.target_fonts) if config.target_fonts else []
    # Of two images that are alike, the first stays: the target's.
    paths = [*held_out, *(each for each in font_files(config.fonts) if each not in held_out)]
    glyphs = _draw(paths, config)
    chosen = _distinct(glyphs)
    of_target = np.isin(glyphs.names, held_out)
    kept_out = np.isin(glyphs.families, glyphs.families[of_target])
    source = chosen[~kept_out[glyphs.fonts[chosen]]]
    if not len(source):
        raise ValueError("All families of --fonts are in --target-fonts too. Add other fonts.")
    classes = _large_classes(glyphs.labels[source], config.min_per_class)
    source = source[np.isin(glyphs.labels[source], classes)]
    shares = (1 - config.val - config.test, config.val, config.test)
    splits = _by_family(glyphs, source, "source", shares, config.seed)
    splits["source_train"] = _at_most(glyphs, splits["source_train"], config)
    target = chosen[of_target[glyphs.fonts[chosen]] & (glyphs.labels[chosen] < _NUM_DIGITS)]
    targets = _by_family(glyphs, target, "target", _TARGET_SHARES, config.seed)
    datasets = ((splits, classes), (targets, list(range(_NUM_DIGITS))))
    written = {name for each, _ in datasets for name, ids in each.items() if len(ids)}
    check_no_stale(config.out, sorted({*splits, *targets} - written))
    done: dict[str, dp4tl_ffcv.BetonIndex] = {}
    for each, numbers in datasets:
        names = [class_name(CLASSES[number]) for number in numbers]
        samples = {
            name: _samples(glyphs, ids, numbers, config.ink)
            for name, ids in each.items()
            if len(ids)
        }
        done |= write_splits("glyphs", samples, names, config)
    return done


def _check(config: Config) -> None:
    check_int("resolution", config.resolution, 16, 128)
    check_int("min_per_class", config.min_per_class, 1)
    check_choice("ink", config.ink, ("light", "dark"))
    if config.max_per_class is not None:
        check_int("max_per_class", config.max_per_class, 1)
    check_fractions(config.val, config.test)


def _draw(paths: Sequence[str], config: Config) -> _Glyphs:
    """Draw all fonts. Leave out fonts whose images do not resemble their classes, and say so."""
    faces = list(draw_fonts(paths, CLASSES, config.resolution, config.on_error))
    counts = [len(face.labels) for face in faces]
    if not sum(counts):
        raise ValueError(f"None of the {len(paths)} fonts can be drawn and has a known character.")
    fonts = np.repeat(np.arange(len(faces)), counts)
    labels = np.concatenate([face.labels for face in faces])
    images = np.concatenate([face.images for face in faces])
    like = resemblance(signatures(images), labels, fonts, len(faces))
    for number in np.flatnonzero(like < _RESEMBLES):
        say(f"left out {faces[number].path}: its characters do not resemble those of other fonts")
    kept = np.flatnonzero(like[fonts] >= _RESEMBLES)
    # As objects: an array of text has the length of the longest name for each font.
    names = np.array([face.family for face in faces], dtype=object)
    return _Glyphs(
        [face.path for face in faces],
        np.unique(names, return_inverse=True)[1],
        fonts[kept],
        labels[kept],
        images[kept],
    )


def _distinct(glyphs: _Glyphs) -> NDArray[np.int64]:
    """Return the positions of images that are unlike all earlier ones of their class."""
    marks = signatures(glyphs.images)
    groups = [np.flatnonzero(glyphs.labels == label) for label in range(len(CLASSES))]
    return np.sort(np.concatenate([ids[distinct(marks[ids])] for ids in groups]))


def _large_classes(labels: NDArray[np.int64], fewest: int) -> list[int]:
    counts = np.bincount(labels, minlength=len(CLASSES))
    small = [f"{CLASSES[i][0]} {counts[i]}" for i in np.flatnonzero(counts < fewest)]
    if len(small) == len(CLASSES):
        raise ValueError(
            f"No class has {fewest} different images; the largest has {counts.max()}. Add fonts, "
            "or lower --min-per-class."
        )
    if small:
        say(f"left out {len(small)} classes with fewer than {fewest} images: {', '.join(small)}")
    return np.flatnonzero(counts >= fewest).tolist()


def _by_family(
    glyphs: _Glyphs,
    positions: NDArray[np.int64],
    dataset: str,
    shares: Sequence[float],
    seed: int,
) -> dict[str, NDArray[np.int64]]:
    """Divide images into splits, each family into one."""
    family = glyphs.families[glyphs.fonts[positions]]
    names = np.random.default_rng(seed).permutation(np.unique(family))
    val, test = (round(share * len(names)) for share in shares[1:])
    parts = np.split(names, [len(names) - val - test, len(names) - test])
    if len(names) and not len(parts[0]):
        raise ValueError(
            f"{dataset}: none of the {len(names)} families of fonts is left for training. Lower "
            "--val and --test, or add fonts."
        )
    if len(names):
        counts = ", ".join(
            f"{len(part)} {split}" for part, split in zip(parts, SPLITS, strict=True)
        )
        say(f"{dataset}: {len(positions)} images of {len(names)} families of fonts: {counts}")
    return {
        f"{dataset}_{split}": positions[np.isin(family, part)]
        for split, part in zip(SPLITS, parts, strict=True)
    }


def _at_most(glyphs: _Glyphs, positions: NDArray[np.int64], config: Config) -> NDArray[np.int64]:
    most = config.max_per_class
    if most is None:
        return positions
    chosen, _ = draw_by_class(
        glyphs.labels[positions], lambda count: [min(count, most)], config.seed
    )
    return positions[np.sort(chosen)]


def _samples(
    glyphs: _Glyphs, positions: NDArray[np.int64], classes: Sequence[int], ink: str
) -> utils.LazyImages:
    """Return the images at `positions`, the class `classes[i]` as label i."""

    def image(i: int) -> NDArray[np.uint8]:
        grey = glyphs.images[positions[i]]
        return np.repeat((grey if ink == "light" else 255 - grey)[..., None], 3, axis=2)

    def name(i: int) -> str:
        at = positions[i]
        return f"{glyphs.names[glyphs.fonts[at]]}:{CLASSES[glyphs.labels[at]][0]}"

    labels = np.searchsorted(classes, glyphs.labels[positions])
    return utils.LazyImages(image, labels, positions, name)


if __name__ == "__main__":
    run(__name__)
