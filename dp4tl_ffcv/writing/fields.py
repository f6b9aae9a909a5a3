"""The field of images: keeps a JPEG's bytes where nothing has to change, else makes a new one."""

import io
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from ffcv.fields import RGBImageField
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..beton import format
from ..jpeg import turbojpeg
from ..jpeg.markers import JpegStructure, orientation_of, read_structure
from ..kernels import resize_area

ImageValue: TypeAlias = "bytes | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

_MODES = {name: number for number, name in format.IMAGE_MODES.items()}
_LONGEST_SIDE = (1 << 16) - 1  # the metadata has 16 bits for it
_MOST_GREY = (1 << 16) - 1
_UPRIGHT = 1
# What makes an image of each other EXIF orientation upright.
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
_TO_RGB = (0, 1, 2)  # TJCS_RGB, TJCS_YCbCr, TJCS_GRAY: what TurboJPEG turns into RGB


class ImageField(RGBImageField):  # type: ignore[misc]  # ffcv is untyped
    """RGB images, stored so that stock ffcv reads them as its own.

    A value is the content of an image file, the path of one, a PIL image, or pixels `(H, W, 3)` of
    uint8. Content of three-component baseline or progressive JPEGs that TurboJPEG reads is stored
    byte for byte when nothing has to change. All else is decoded, turned as its EXIF orientation
    says, converted to RGB (16-bit grey scaled, alpha dropped), shrunk by the mean over areas, and
    encoded (JPEG 4:2:0) or stored as it is. A JPEG that is decoded must be without damage that can
    be told: other decoders make grey or coloured blocks of it in silence.

    Args:
        mode: `jpg` or `raw`.
        jpeg_quality: 1 to 100, of JPEGs that are made.
        max_resolution: longer side in pixels above which images are shrunk; None keeps them.
        short_side: shorter side in pixels above which images are shrunk; None keeps them.
        decode_check: decode JPEGs that are kept too, to find damage within; without it their
            structure is checked, from the first marker to the last.
    """

    def __init__(
        self,
        mode: str = "jpg",
        jpeg_quality: int = 90,
        max_resolution: int | None = None,
        short_side: int | None = None,
        decode_check: bool = False,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"`mode` must be jpg or raw; got {mode!r}. Choose one.")
        if not 1 <= jpeg_quality <= 100:
            raise ValueError(
                f"`jpeg_quality` must lie in 1 to 100; got {jpeg_quality}. 90 is a good choice."
            )
        if max_resolution is not None and short_side is not None:
            raise ValueError(
                f"`max_resolution` and `short_side` must not both be given; got {max_resolution} "
                f"and {short_side}. Choose the side that is limited."
            )
        for name, side in {"max_resolution": max_resolution, "short_side": short_side}.items():
            if side is not None and not 1 <= side <= _LONGEST_SIDE:
                raise ValueError(
                    f"`{name}` must lie in 1 to {_LONGEST_SIDE} pixels; got {side}. Pass another."
                )
        super().__init__(write_mode=mode, max_resolution=max_resolution, jpeg_quality=jpeg_quality)
        self.mode = mode
        self.short_side = short_side
        self.decode_check = decode_check
        if max_resolution or short_side:  # compiled here, once, and not in every worker
            resize_area(np.zeros((2, 2, 3), dtype=np.uint8), (1, 1))

    def encode(
        self,
        destination: NDArray[Any],
        value: ImageValue,
        malloc: Callable[[int], tuple[int, NDArray[np.uint8]]],
    ) -> None:
        """Store one image.

        Args:
            destination: its metadata `(1,)`.
            value: the image.
            malloc: returns place and memory of as many bytes as are asked for.

        Raises:
            ValueError: the image is damaged, too large, or of another kind.
            OSError: its file cannot be read.
        """
        content, stored = _content_of(value), None
        if content is not None:
            structure = read_structure(content)
            if structure is not None and self.mode == "jpg":
                stored = self._kept(content, structure)
            pixels = None if stored else _decode(content, structure)
        else:
            pixels = _pixels_of(value)
        if pixels is not None:
            stored = self._made(pixels)
        data, (height, width) = stored  # type: ignore[misc]  # one of the two has set it
        destination["mode"] = _MODES[self.mode]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, dtype=np.uint8)

    def _kept(
        self, content: bytes, structure: JpegStructure
    ) -> tuple[bytes, tuple[int, int]] | None:
        """Return content and size of a JPEG that may stay as it is, else None."""
        if not structure.is_whole or structure.components != 3 or structure.orientation != _UPRIGHT:
            return None
        try:
            header = turbojpeg.read_header(content)
        except turbojpeg.JpegError:
            return None  # Pillow may know how to read it
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
        if max(size) > _LONGEST_SIDE:
            raise ValueError(f"an image of {size[1]} x {size[0]} pixels, too large for a beton")
        if size != pixels.shape[:2]:
            pixels = resize_area(pixels, size)
        if self.mode == "raw":
            return np.ascontiguousarray(pixels).tobytes(), size
        return turbojpeg.encode(pixels, quality=self.jpeg_quality), size

    def _shrunk(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width that an image of `size` gets."""
        limit, side = self.max_resolution, max(size)
        if self.short_side is not None:
            limit, side = self.short_side, min(size)
        if limit is None or side <= limit:
            return size
        height, width = (max(1, round(each * limit / side)) for each in size)
        return height, width


def _content_of(value: ImageValue) -> bytes | None:
    """Return the content of an image file, if the value is one."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        with open(value, "rb") as stream:
            return stream.read()
    return None


def _decode(content: bytes, structure: JpegStructure | None) -> NDArray[np.uint8]:
    """Decode the content of an image file to upright RGB."""
    if structure is not None and structure.components and _is_turbojpegs(content):
        return _upright(turbojpeg.decode(content), structure.orientation)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _pixels_of(image)
    except UnidentifiedImageError:
        raise ValueError("no image that can be read") from None
    except SyntaxError as error:  # what Pillow raises for some damaged files
        raise ValueError(f"a damaged image: {error}") from error


def _is_turbojpegs(content: bytes) -> bool:
    """Say whether TurboJPEG can decode a JPEG to RGB, if it is whole."""
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
            "`image` must be bytes, a path, a PIL image or an array; got "
            f"{type(value).__name__}. Convert it."
        )
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise ValueError(
            f"`image` must have shape (H, W, 3) and dtype uint8; got {value.shape} of "
            f"{value.dtype}. Convert it to 8-bit RGB."
        )
    return value


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of more than 8 bits, which Pillow's convert turns white
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > _MOST_GREY):
            raise ValueError(f"grey values from {values.min()} to {values.max()}, not of 16 bits")
        image = Image.fromarray((values // 256).astype(np.uint8))
    if image.mode == "F":  # of which Pillow's convert makes black or white
        raise ValueError("grey values of floating point, whose range is not known")
    return image.convert("RGB")
