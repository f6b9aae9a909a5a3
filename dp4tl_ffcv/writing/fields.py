"""The field of images. It stores a JPEG unchanged if possible, and encodes other images."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from ffcv.fields import RGBImageField
from numpy.typing import NDArray
from PIL import Image

from ..beton.format import IMAGE_MODES, LONGEST_SIDE
from ..jpeg import turbojpeg
from ..jpeg.baseline import to_baseline
from ..jpeg.markers import read_structure
from ..kernels import resize_area
from ..validate import check_choice, check_int
from .decode import check_size, decode_with_pillow, pixels_of_image, read_file, upright

ImageValue: TypeAlias = "bytes | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

_MODES = {name: number for number, name in IMAGE_MODES.items()}
_UPRIGHT = 1
_TO_RGB = (0, 1, 2)  # TJCS_RGB, TJCS_YCbCr, TJCS_GRAY: colour spaces that TurboJPEG decodes to RGB


class ImageField(RGBImageField):  # type: ignore[misc]  # ffcv is untyped
    """RGB images, stored in the format of ffcv's own `RGBImageField`.

    A value is the content of an image file, its path, a PIL image, or uint8 pixels `(H, W, 3)`.

    A baseline or progressive JPEG with three components is stored byte for byte if nothing has to
    change. Any other image is decoded, turned upright by its EXIF orientation, converted to RGB
    (16-bit grey is scaled, alpha is dropped), shrunk by area averaging, and stored as JPEG 4:2:0
    or raw pixels. Of several images in a file, such as an animated GIF, the first is stored.

    An image in which decoding detects damage is an error; many decoders would turn the damage into
    grey or coloured blocks. Only PNG has checksums: in other formats, changed data may be valid.
    Values that are no regular files, files of more than 2 GiB and images of more than 178,956,970
    pixels, where Pillow suspects a decompression bomb, are errors too.

    Args:
        mode: `jpg` or `raw`.
        jpeg_quality: quality of new JPEGs, 1 to 100.
        max_resolution: largest longer side in pixels; larger images are shrunk. None keeps them.
        short_side: largest shorter side in pixels; larger images are shrunk. None keeps them.
        decode_check: also decode JPEGs that are stored unchanged, to detect corrupt ones.
            Otherwise only their markers are checked.
        baseline: store progressive JPEGs, and others that cannot be indexed because of their
            coding, as baseline JPEGs. These have the same pixels and metadata and decode about
            2.8 times faster, but have about 10 % more bytes than progressive ones.
    """

    def __init__(
        self,
        mode: str = "jpg",
        jpeg_quality: int = 90,
        max_resolution: int | None = None,
        short_side: int | None = None,
        decode_check: bool = False,
        baseline: bool = False,
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
        self.baseline = baseline
        if max_resolution or short_side:  # compile it once here, not in every worker
            resize_area(np.zeros((2, 2, 3), dtype=np.uint8), (1, 1))

    def encode(
        self,
        destination: NDArray[Any],
        value: ImageValue,
        malloc: Callable[[int], tuple[int, NDArray[np.uint8]]],
    ) -> None:
        """Store one image: fill its metadata `destination`, and memory from `malloc`.

        Raises:
            ValueError: the image is corrupt, too large, or of an unknown format.
            OSError: the file cannot be read.
        """
        data, (height, width) = self._stored(value)
        destination["mode"] = _MODES[self.mode]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, dtype=np.uint8)

    def _stored(self, value: ImageValue) -> tuple[bytes, tuple[int, int]]:
        content = _content_of(value)
        if content is None:
            return self._made(_pixels_of(value))
        structure = read_structure(content)
        header = None
        if structure:
            with suppress(turbojpeg.JpegError):  # Pillow may be able to read the file
                header = turbojpeg.read_header(content)
        if structure is None or header is None:
            return self._made(decode_with_pillow(content))
        size = (header.height, header.width)
        check_size(*size)
        is_usual = structure.is_whole and structure.components == 3
        is_right = structure.orientation == _UPRIGHT and self._shrunk(size) == size
        if self.mode == "jpg" and is_usual and is_right:
            if self.decode_check:
                turbojpeg.check(content)
            return (to_baseline(content) if self.baseline else content), size
        if structure.components and header.colorspace in _TO_RGB:
            return self._made(upright(turbojpeg.decode(content), structure.orientation))
        turbojpeg.check(content)  # Pillow does not detect damage in JPEGs
        return self._made(decode_with_pillow(content))

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
    """Return the content of an image file, or None if the value is an open image."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str | os.PathLike):
        return read_file(value)
    return None


def _pixels_of(value: Any) -> NDArray[np.uint8]:
    if isinstance(value, Image.Image):
        return pixels_of_image(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"an image must be bytes, a path, a PIL image or an array, not {type(value).__name__}"
        )
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise ValueError(f"pixels must be uint8 (H, W, 3), not {value.dtype} {value.shape}")
    return value
