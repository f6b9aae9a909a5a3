"""The field of images: stores a JPEG unchanged where possible, and encodes other images."""

import io
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from ffcv.fields import RGBImageField
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..beton.format import IMAGE_MODES, LONGEST_SIDE
from ..jpeg import turbojpeg
from ..jpeg.markers import JpegStructure, orientation_of, read_structure
from ..kernels import resize_area
from ..validate import check_choice, check_int

ImageValue: TypeAlias = "bytes | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

_MODES = {name: number for number, name in IMAGE_MODES.items()}
_MOST_GREY = (1 << 16) - 1
_UPRIGHT = 1
# Makes an image of each other EXIF orientation upright.
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
_TO_RGB = (0, 1, 2)  # TJCS_RGB, TJCS_YCbCr, TJCS_GRAY: colour spaces that TurboJPEG decodes to RGB


class ImageField(RGBImageField):  # type: ignore[misc]  # ffcv is untyped
    """RGB images, stored as ffcv's own `RGBImageField` stores them.

    A value is the content of an image file, its path, a PIL image, or uint8 pixels `(H, W, 3)`.

    A baseline or progressive JPEG with three components is stored byte for byte if nothing has to
    change. Any other image is decoded, turned upright by its EXIF orientation, converted to RGB
    (16-bit grey is scaled, alpha is dropped), shrunk by area averaging, and stored as JPEG 4:2:0
    or raw pixels. A JPEG that is decoded must be free of detectable damage; other decoders
    silently turn damage into grey or coloured blocks.

    Args:
        mode: `jpg` or `raw`.
        jpeg_quality: quality of new JPEGs, 1 to 100.
        max_resolution: longer side in pixels above which images are shrunk. None keeps them.
        short_side: shorter side in pixels above which images are shrunk. None keeps them.
        decode_check: also decode JPEGs that are stored unchanged, to detect corrupt ones. Without
            it only their markers are checked, from the first to the last.
    """

    def __init__(
        self,
        mode: str = "jpg",
        jpeg_quality: int = 90,
        max_resolution: int | None = None,
        short_side: int | None = None,
        decode_check: bool = False,
    ) -> None:
        check_choice("mode", mode, _MODES)
        check_int("jpeg_quality", jpeg_quality, 1, 100)
        if max_resolution is not None and short_side is not None:
            raise ValueError("Pass either `max_resolution` or `short_side`, not both.")
        for name, side in {"max_resolution": max_resolution, "short_side": short_side}.items():
            if side is not None:
                check_int(name, side, 1, LONGEST_SIDE)
        super().__init__(write_mode=mode, max_resolution=max_resolution, jpeg_quality=jpeg_quality)
        self.mode = mode
        self.short_side = short_side
        self.decode_check = decode_check
        if max_resolution or short_side:  # compile once here, not in every worker
            resize_area(np.zeros((2, 2, 3), dtype=np.uint8), (1, 1))

    def encode(
        self,
        destination: NDArray[Any],
        value: ImageValue,
        malloc: Callable[[int], tuple[int, NDArray[np.uint8]]],
    ) -> None:
        """Store one image: fill its metadata `destination`, and memory that `malloc` returns.

        Raises:
            ValueError: the image is corrupt, too large, or of an unknown format.
            OSError: its file cannot be read.
        """
        data, (height, width) = self._stored(value)
        destination["mode"] = _MODES[self.mode]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, dtype=np.uint8)

    def _stored(self, value: ImageValue) -> tuple[bytes, tuple[int, int]]:
        """Return the stored bytes of an image, its height and its width."""
        content = _content_of(value)
        if content is None:
            return self._made(_pixels_of(value))
        structure = read_structure(content)
        if structure is not None and self.mode == "jpg":
            kept = self._kept(content, structure)
            if kept:
                return kept
        return self._made(_decode(content, structure))

    def _kept(
        self, content: bytes, structure: JpegStructure
    ) -> tuple[bytes, tuple[int, int]] | None:
        """Return content and size of a JPEG that can be stored unchanged, else None."""
        if not structure.is_whole or structure.components != 3 or structure.orientation != _UPRIGHT:
            return None
        try:
            header = turbojpeg.read_header(content)
        except turbojpeg.JpegError:
            return None  # Pillow may be able to read it
        size = (header.height, header.width)
        if self._shrunk(size) != size:
            return None
        if self.decode_check:
            turbojpeg.check(content)
        return content, size

    def _made(self, pixels: NDArray[np.uint8]) -> tuple[bytes, tuple[int, int]]:
        size = self._shrunk((pixels.shape[0], pixels.shape[1]))
        if min(size) < 1:
            raise ValueError(f"an image of {size[1]} x {size[0]} pixels")
        if max(size) > LONGEST_SIDE:
            raise ValueError(f"an image of {size[1]} x {size[0]} pixels, too large for a beton")
        if size != pixels.shape[:2]:
            pixels = resize_area(pixels, size)
        if self.mode == "raw":
            return np.ascontiguousarray(pixels).tobytes(), size
        return turbojpeg.encode(pixels, quality=self.jpeg_quality), size

    def _shrunk(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the stored height and width of an image of `size`."""
        limit, side = self.max_resolution, max(size)
        if self.short_side is not None:
            limit, side = self.short_side, min(size)
        if limit is None or side <= limit:
            return size
        height, width = (max(1, round(each * limit / side)) for each in size)
        return height, width


def _content_of(value: ImageValue) -> bytes | None:
    """Return the content of an image file if the value is one, else None."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        with open(value, "rb") as stream:
            return stream.read()
    return None


def _decode(content: bytes, structure: JpegStructure | None) -> NDArray[np.uint8]:
    """Decode the content of an image file to upright RGB."""
    if structure is not None and structure.components and _turbojpeg_decodes(content):
        return _upright(turbojpeg.decode(content), structure.orientation)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _pixels_of(image)
    except UnidentifiedImageError:
        raise ValueError("not a known image format") from None
    except SyntaxError as error:  # Pillow raises it for some corrupt files
        raise ValueError(f"a corrupt image: {error}") from error


def _turbojpeg_decodes(content: bytes) -> bool:
    """Return whether TurboJPEG decodes JPEGs of this kind to RGB."""
    try:
        return turbojpeg.read_header(content).colorspace in _TO_RGB
    except turbojpeg.JpegError:
        return False


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(_TURNS[orientation](pixels)) if orientation in _TURNS else pixels


def _pixels_of(value: Any) -> NDArray[np.uint8]:
    """Return upright RGB pixels `(H, W, 3)` of a PIL image or an array."""
    if isinstance(value, Image.Image):
        orientation = orientation_of(value.getexif)  # before the conversion, which may lose it
        return _upright(np.asarray(_to_rgb(value)), orientation)
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"an image must be bytes, a path, a PIL image or an array, not {type(value).__name__}"
        )
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise ValueError(f"pixels must be uint8 (H, W, 3), not {value.dtype} {value.shape}")
    return value


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of more than 8 bits, which Pillow would clip to white
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > _MOST_GREY):
            raise ValueError(f"grey values from {values.min()} to {values.max()}, not 16 bits")
        image = Image.fromarray((values // 256).astype(np.uint8))
    if image.mode == "F":  # Pillow would clip it to black and white
        raise ValueError("floating-point grey values of unknown range")
    return image.convert("RGB")
