"""Decode and encode JPEGs with TurboJPEG, in the build that ffcv itself decodes with.

The library is found inside the ffcv package without importing that. Its functions run without
Python's lock, so threads decode in parallel, and nothing of it is kept between calls: a process
that is forked may go on calling.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Data: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]

# Of TurboJPEG's interface.
_RGB = 0  # TJPF_RGB
_420 = 2  # TJSAMP_420
_NO_REALLOC, _FAST_DCT, _ACCURATE_DCT, _STOP_ON_WARNING = 1024, 2048, 4096, 8192  # TJFLAG_*

_INT, _SIZE, _POINTER, _TEXT = ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_char_p
_INTERFACE: dict[str, tuple[Any, list[Any]]] = {
    "tjInitCompress": (_POINTER, []),
    "tjInitDecompress": (_POINTER, []),
    "tjDestroy": (_INT, [_POINTER]),
    "tjGetErrorStr2": (_TEXT, [_POINTER]),
    "tjBufSize": (_SIZE, [_INT] * 3),
    "tjDecompressHeader3": (_INT, [_POINTER, _POINTER, _SIZE, *[_POINTER] * 4]),
    "tjDecompress2": (_INT, [_POINTER, _POINTER, _SIZE, _POINTER, *[_INT] * 5]),
    "tjCompress2": (_INT, [*[_POINTER] * 2, *[_INT] * 4, *[_POINTER] * 2, *[_INT] * 3]),
}


class JpegError(ValueError):
    """TurboJPEG refuses data or pixels, or warns of them; the message is the library's."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a JPEG says of itself."""

    height: int
    width: int
    subsampling: int
    """Of the chroma planes, a `TJSAMP` number: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0, 3 is grey."""
    colorspace: int
    """A `TJCS` number: 0 is RGB, 1 is YCbCr, 2 is grey, 3 is CMYK, 4 is YCCK."""


def read_header(data: Data) -> JpegHeader:
    """Read size and colours of a JPEG, without decoding it.

    Args:
        data: the JPEG.

    Raises:
        JpegError: it has no header that can be read.
    """
    source = _as_bytes(data)
    with _handle(_library().tjInitDecompress) as handle:
        return _read_header(handle, source)


def decode(data: Data, *, fast: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB, as it is stored: not turned as its EXIF data may ask for.

    Args:
        data: the JPEG: grey, YCbCr or RGB.
        fast: use the faster, rougher transform, which ffcv uses: with it the pixels are, to the
            bit, those that ffcv decodes.

    Returns:
        Pixels `(H, W, 3)`.

    Raises:
        JpegError: the data is no JPEG, or is truncated or damaged where TurboJPEG can tell, or its
            colours have no RGB (CMYK).
    """
    source = _as_bytes(data)
    with _handle(_library().tjInitDecompress) as handle:
        header = _read_header(handle, source)
        height, width = header.height, header.width
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        # It stops at once: a header of a few bytes may promise gigabytes of pixels.
        flags = _STOP_ON_WARNING | (_FAST_DCT if fast else 0)
        image = (pixels.ctypes.data, width, 3 * width, height, _RGB)
        status = _library().tjDecompress2(handle, source.ctypes.data, source.size, *image, flags)
        _check(status, handle)
    return pixels


def check(data: Data) -> None:
    """Read all coded data of a JPEG and raise what `decode` would, in about half of its time.

    Args:
        data: the JPEG.

    Raises:
        JpegError: as `decode` does.
    """
    source = _as_bytes(data)
    with _handle(_library().tjInitDecompress) as handle:
        header = _read_header(handle, source)
        # At an eighth of the size one value of each block is enough, but all are read.
        height, width = -(-header.height // 8), -(-header.width // 8)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        image = (pixels.ctypes.data, width, 3 * width, height, _RGB)
        options = (_STOP_ON_WARNING | _FAST_DCT,)
        _check(
            _library().tjDecompress2(handle, source.ctypes.data, source.size, *image, *options),
            handle,
        )


def encode(pixels: NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode RGB pixels as a baseline JPEG with chroma of half the size (4:2:0).

    Args:
        pixels: `(H, W, 3)`, uint8.
        quality: 1 to 100.

    Raises:
        ValueError: the pixels are of another shape or type, or `quality` is out of range.
        JpegError: a side is longer than JPEG allows.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"`pixels` must be uint8 of shape (H, W, 3); got {pixels.dtype} of shape "
            f"{pixels.shape}. Convert the image to RGB."
        )
    if not 1 <= quality <= 100:
        raise ValueError(f"`quality` must lie in 1 to 100; got {quality}. 90 is a good choice.")
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    room = np.empty(_library().tjBufSize(width, height, _420), dtype=np.uint8)
    at, size = _POINTER(room.ctypes.data), _SIZE(room.size)
    with _handle(_library().tjInitCompress) as handle:
        image = (pixels.ctypes.data, width, 3 * width, height, _RGB)
        options = (_420, quality, _NO_REALLOC | _ACCURATE_DCT)
        status = _library().tjCompress2(
            handle, *image, ctypes.byref(at), ctypes.byref(size), *options
        )
        _check(status, handle)
    return room[: size.value].tobytes()


@cache
def _library() -> ctypes.CDLL:
    package = find_spec("ffcv")
    folders = None if package is None else package.submodule_search_locations
    found = PathFinder.find_spec("_libffcv", folders or [])
    if found is None or found.origin is None:
        raise ImportError("ffcv must be installed; got no extension of it. Run pip install ffcv.")
    library = ctypes.CDLL(found.origin)
    for name, (result, arguments) in _INTERFACE.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@contextmanager
def _handle(make: Callable[[], int | None]) -> Iterator[int]:
    # A new one for each image costs nothing beside the work. One that is used again would decode
    # an image that has lost its tables with those of the image before.
    handle = make()
    if handle is None:
        raise MemoryError("TurboJPEG has no memory left")
    try:
        yield handle
    finally:
        _library().tjDestroy(handle)


def _as_bytes(data: Data) -> NDArray[np.uint8]:
    """Return `data` as a contiguous array `(n,)`, without a copy where it is contiguous."""
    whole = data if isinstance(data, bytes | bytearray) else np.ascontiguousarray(data)
    return np.frombuffer(whole, dtype=np.uint8)


def _read_header(handle: int, source: NDArray[np.uint8]) -> JpegHeader:
    if not source.size:
        raise JpegError("there is no data")
    found = (_INT * 4)()
    at = ctypes.addressof(found)
    addresses = [at + i * ctypes.sizeof(_INT) for i in range(4)]
    read = _library().tjDecompressHeader3
    _check(read(handle, source.ctypes.data, source.size, *addresses), handle)
    width, height, subsampling, colorspace = found
    if not width or not height:  # tables alone, and no image
        raise JpegError("the data ends before an image begins")
    return JpegHeader(height, width, subsampling, colorspace)


def _check(status: int, handle: int) -> None:
    if status != 0:
        raise JpegError(_library().tjGetErrorStr2(handle).decode("ascii", "replace"))
