"""Find fonts, and draw their characters at one size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import fstat
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import utils

from .characters import MISSING
from .common import say
from .files import files_below, tell_ignored
from .likeness import in_earlier_class, signatures

FONT_SUFFIXES = (".otf", ".ttc", ".ttf")
_LARGEST_FONT = 1 << 28  # bytes
_MOST_FACES = 64  # of a collection
_MOST_EMS = 8  # width and height of a glyph
_SHARE = 20 / 28  # of the image's side that the glyph's longer side takes, as in MNIST

Pixels = NDArray[np.uint8]  # (resolution, resolution), 255 where there is ink


@dataclass(frozen=True)
class Face:
    """A font, or one of a collection, and the images of its characters."""

    path: str
    """Path of the file."""
    family: str
    """Name of the font's family, as it says itself."""
    labels: NDArray[np.int64]
    """Class of each image, (n,), not descending."""
    images: NDArray[np.uint8]
    """Grey images with light ink, (n, resolution, resolution)."""


def font_files(folders: Iterable[Path]) -> list[str]:
    """Return the sorted paths of the fonts below `folders`. Print how many other files there are.

    Raises:
        ValueError: a folder does not exist, or there are no fonts.
    """
    others: list[str] = []
    found: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"There is no folder of fonts {str(folder)!r}.")
        found.update(files_below(folder, FONT_SUFFIXES, others))
    tell_ignored(others)
    if not found:
        shown = ", ".join(map(str, folders))
        raise ValueError(f"There are no fonts ({', '.join(FONT_SUFFIXES)}) below {shown}.")
    return sorted(found)


def draw_fonts(
    paths: Sequence[str],
    classes: Sequence[str],
    resolution: int,
    on_error: Literal["raise", "skip"],
) -> Iterator[Face]:
    """Draw the characters of all fonts. Skipped fonts are printed with the reason.

    Args:
        paths: files of fonts.
        classes: characters of each class.
        resolution: side of the images, in pixels.
        on_error: what to do with a font that cannot be drawn.

    Raises:
        ValueError: FreeType refuses a font, or one of its glyphs, and `on_error` is `raise`.
    """
    for path in utils.track(paths, total=len(paths), description="draw fonts", unit="font"):
        try:
            yield from _draw_file(path, classes, resolution)
        except (OSError, ValueError) as error:
            if on_error == "raise":
                raise ValueError(
                    f"Cannot draw the font {path!r}: {error}. Pass --on-error skip to leave it out."
                ) from error
            say(f"skipped {path}: {error}")


def _draw_file(path: str, classes: Sequence[str], resolution: int) -> list[Face]:
    from PIL import ImageFont

    with utils.open_file(path) as stream:
        size = fstat(stream.fileno()).st_size
        if size > _LARGEST_FONT:
            raise ValueError(f"it has {size >> 20} MiB, and at most {_LARGEST_FONT >> 20} are read")
        data = stream.read()
    count = int.from_bytes(data[8:12]) if data.startswith(b"ttcf") else 1
    if count > _MOST_FACES:
        raise ValueError(f"it has {count} fonts, and at most {_MOST_FACES} are read")
    faces = []
    for number in range(count):
        # The basic layout draws alike with and without libraqm.
        font = ImageFont.truetype(
            io.BytesIO(data), 2 * resolution, number, layout_engine=ImageFont.Layout.BASIC
        )
        labels, images = _draw_classes(font, classes, resolution)
        family = font.getname()[0] or Path(path).stem
        faces.append(Face(path, family, labels, images))
    return faces


def _draw_classes(
    font: Any, classes: Sequence[str], resolution: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Draw all characters that a font has. Images that an earlier class has too are left out."""
    lacking = [None, *(_ink(font, character) for character in MISSING)]
    labels, images = [], []
    for label, characters in enumerate(classes):
        for character in characters:
            ink = _ink(font, character)
            if ink not in lacking:
                labels.append(label)
                images.append(_fit(ink, resolution))
    drawn = np.array(labels, dtype=np.int64)
    pixels = np.array(images, dtype=np.uint8).reshape(-1, resolution, resolution)
    own = ~in_earlier_class(signatures(pixels), drawn)
    return drawn[own], pixels[own]


def _ink(font: Any, character: str) -> Any:
    """Return a character as a grey image without margins, or None if it is blank."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)
    width, height = int(right - left), int(bottom - top)
    if max(width, height) > _MOST_EMS * font.size:
        raise ValueError(f"its U+{ord(character):04X} is more than {_MOST_EMS} ems wide or high")
    if min(width, height) <= 0:
        return None
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    around = image.getbbox()
    return around and image.crop(around)


def _fit(ink: Any, resolution: int) -> Pixels:
    """Scale an image without margins to one size, in the middle of a black square."""
    from PIL import Image

    longest = round(_SHARE * resolution)
    scale = longest / max(ink.size)
    width, height = (max(1, round(scale * each)) for each in ink.size)
    canvas = Image.new("L", (resolution, resolution))
    drawn = ink.resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(drawn, ((resolution - width) // 2, (resolution - height) // 2))
    return np.asarray(canvas)
