"""Read image files, and decode those that are no JPEGs with Pillow. Damage is an error."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from ..jpeg.markers import orientation_of
from ..stored import open_file

MOST_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS, where it raises an error
MOST_BYTES = 1 << 31  # of a file; a page of a beton has no more
MOST_SCANS = 500  # of a JPEG, which TurboJPEG limits to this number: each takes time like an image
# Pillow guesses the format, and for others may run programs: Ghostscript for PostScript.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MOST_GREY = (1 << 16) - 1
# Pixels that a byte of a file can hold: a pixel has at least one bit, and deflate expands to at
# most 1,032 times, LZW to less. Other formats, and TIFF's codes for fax, store an image of one
# colour in a few bytes.
_PIXELS_PER_BYTE = {
    "BMP raw": 8, "PPM raw": 8, "PNG zip": 8 * 1032, "GIF gif": 8 * 1032,
    "TIFF raw": 8, "TIFF packbits": 8 * 64, "TIFF tiff_lzw": 8 * 1032,
    "TIFF tiff_adobe_deflate": 8 * 1032, "TIFF tiff_deflate": 8 * 1032,
}  # fmt: skip

# Functions that turn an image upright, for each other EXIF orientation.
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file, which a link may lead to.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it is larger than 2 GiB, or was truncated while it was read.
    """
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MOST_BYTES:
            raise ValueError(f"a file of {size} bytes, too large for an image")
        content = stream.read(size)
    if len(content) != size:
        raise ValueError("the file was truncated while it was read")
    return content


def decode_with_pillow(content: bytes) -> NDArray[np.uint8]:
    """Decode an image file to upright RGB pixels `(H, W, 3)`; the first image of several.

    Raises:
        ValueError: the format is unknown, the image is too large, or damage is detected.
        OSError: Pillow detects damage.
    """
    if not content:
        raise ValueError("the file is empty")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError(f"a JPEG of more than {MOST_SCANS} scans")
    try:
        with _STRICT:
            if content.startswith(b"\x89PNG"):
                with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                    image.verify()  # the checksums, which decoding ignores in part
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                check_size(image.height, image.width)
                _check_room(image, len(content))
                return pixels_of_image(image)
    except UnidentifiedImageError:
        raise ValueError("not a known image format") from None
    except Image.DecompressionBombError:
        raise ValueError(f"an image of more than {MOST_PIXELS} pixels") from None
    except SyntaxError as error:  # Pillow raises it for some corrupt files
        raise ValueError(f"a corrupt image: {error}") from error


def pixels_of_image(image: Image.Image) -> NDArray[np.uint8]:
    """Return the upright RGB pixels `(H, W, 3)` of a PIL image."""
    check_size(image.height, image.width)
    with _STRICT:
        image.load()  # first: `getexif` would load too, and errors while reading EXIF are ignored
    orientation = orientation_of(image.getexif)  # the conversion may lose it
    return upright(np.asarray(_to_rgb(image)), orientation)


def check_size(height: int, width: int) -> None:
    """Raise ValueError for an image of more than `MOST_PIXELS` pixels."""
    if height * width > MOST_PIXELS:
        raise ValueError(f"an image of {width} x {height} pixels, more than {MOST_PIXELS}")


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels upright that have an EXIF orientation."""
    return np.ascontiguousarray(_TURNS[orientation](pixels)) if orientation in _TURNS else pixels


def _check_room(image: ImageFile.ImageFile, num_bytes: int) -> None:
    """Raise ValueError for a size that so many bytes cannot hold.

    Pillow makes room for the pixels before it reads them.
    """
    code = image.tile[0][0] if image.tile else None
    if image.format == "TIFF":
        code = image.info.get("compression")
    most = num_bytes * _PIXELS_PER_BYTE.get(f"{image.format} {code}", MOST_PIXELS)
    if image.height * image.width > most:
        raise ValueError(f"{num_bytes} bytes for {image.width} x {image.height} pixels: truncated")


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # Pillow may be built without some


@contextmanager
def _strict_pillow() -> Iterator[None]:
    lenient: Any = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see `MOST_PIXELS`
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


class _Strict:
    """Context in which Pillow raises errors for truncated files, whatever a library has set.

    Pillow's setting holds for the process. The first thread in the context changes it, and the last
    one restores it.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._setting = Lock(), 0, ExitStack()
        # A child of a fork has none of the other threads, and must not find the lock taken.
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._after_fork,
        )

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._setting.enter_context(_strict_pillow())
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._setting.close()

    def _after_fork(self) -> None:
        self._threads = 0
        self._setting.close()
        self._lock.release()


_STRICT = _Strict()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of more than 8 bits, which Pillow would clip to white
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > _MOST_GREY):
            raise ValueError(f"grey values from {values.min()} to {values.max()}, not 16 bits")
        image = Image.fromarray((values // 256).astype(np.uint8))
    if image.mode == "F":  # Pillow would clip it to black and white
        raise ValueError("floating-point grey values of unknown range")
    return image.convert("RGB")
