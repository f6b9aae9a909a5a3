"""Decode and encode JPEGs with the TurboJPEG library that ffcv uses.

The library is found inside the ffcv package without importing ffcv. Its functions release Python's
lock, so threads work in parallel, and nothing is kept between calls, so forked processes can
continue to call them.
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

from ..validate import check_int

Data: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]

# Constants of turbojpeg.h.
TJPF_RGB = 0
_TJPF_CMYK, _TJCS_CMYK = 11, 3
TJCS_YCBCR = 1
TJSAMP_444, TJSAMP_422, TJSAMP_420 = 0, 1, 2
TJFLAG_FASTDCT = 2048  # the transform that ffcv decodes with
# Decoding a scan takes time in proportion to the pixels, and a scan may have only 20 bytes.
TJFLAG_LIMITSCANS = 32768  # 500 scans at most
TJERR_WARNING = 0
_TJFLAG_NOREALLOC, _TJFLAG_ACCURATEDCT, _TJFLAG_STOPONWARNING = 1024, 4096, 8192

_INT, _SIZE, _POINTER, _TEXT = ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_char_p
_SOURCE = [_POINTER, _POINTER, _SIZE]  # decompressor, data and its size
_INTERFACE: dict[str, tuple[Any, list[Any]]] = {
    "tjInitCompress": (_POINTER, []),
    "tjInitDecompress": (_POINTER, []),
    "tjDestroy": (_INT, [_POINTER]),
    "tjGetErrorStr2": (_TEXT, [_POINTER]),
    "tjGetErrorCode": (_INT, [_POINTER]),
    "tjBufSize": (_SIZE, [_INT] * 3),
    "tjDecompressHeader3": (_INT, [*_SOURCE, *[_POINTER] * 4]),
    "tjDecompress2": (_INT, [*_SOURCE, _POINTER, *[_INT] * 5]),
    "tjDecompressToYUVPlanes": (_INT, [*_SOURCE, _POINTER, _INT, _POINTER, _INT, _INT]),
    "tjCompress2": (_INT, [*[_POINTER] * 2, *[_INT] * 4, *[_POINTER] * 2, *[_INT] * 3]),
}


class JpegError(ValueError):
    """TurboJPEG rejects a JPEG or pixels, or warns about them. The message is TurboJPEG's."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Size and colours of a JPEG."""

    height: int
    width: int
    subsampling: int
    """A `TJSAMP` number: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0, 3 is grey."""
    colorspace: int
    """A `TJCS` number: 0 is RGB, 1 is YCbCr, 2 is grey, 3 is CMYK, 4 is YCCK."""


@cache
def library() -> ctypes.CDLL:
    """Load TurboJPEG and declare the functions used here."""
    package = find_spec("ffcv")
    folders = None if package is None else package.submodule_search_locations
    found = PathFinder.find_spec("_libffcv", folders or [])
    if found is None or found.origin is None:
        raise ImportError("ffcv is not installed, or lacks its compiled extension.")
    loaded = ctypes.CDLL(found.origin)
    for name, (result, arguments) in _INTERFACE.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def read_header(data: Data) -> JpegHeader:
    """Read size and colours of a JPEG without decoding it.

    Raises:
        JpegError: the data has no readable JPEG header.
    """
    with _decompressor(data) as (_, _, header):
        return header


def decode(data: Data, *, fast: bool = False) -> NDArray[np.uint8]:
    """Decode a JPEG in grey, YCbCr or RGB to RGB pixels `(H, W, 3)`, ignoring EXIF orientation.

    `fast` uses the faster, less exact transform, which gives exactly ffcv's pixels.

    Raises:
        JpegError: the data is not a JPEG, is truncated, corrupt where TurboJPEG detects it, or in
            colours that have no RGB equivalent (CMYK).
    """
    with _decompressor(data) as (handle, source, header):
        return _decompress(handle, source, header.height, header.width, fast)


def check(data: Data) -> None:
    """Raise the errors of `decode` in about half its time, by decoding at an eighth of the size.

    Colours that have no RGB equivalent are no error here.
    """
    with _decompressor(data) as (handle, source, header):
        kind = _TJPF_CMYK if header.colorspace >= _TJCS_CMYK else TJPF_RGB
        height, width = -(-header.height // 8), -(-header.width // 8)
        _decompress(handle, source, height, width, fast=True, kind=kind)


def encode(pixels: NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode RGB pixels, uint8 `(H, W, 3)`, as a baseline JPEG with 4:2:0 subsampling.

    `quality` is 1 to 100.

    Raises:
        ValueError: the pixels have another shape or type, or `quality` is out of range.
        JpegError: a side is longer than JPEG allows.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"`pixels` must be uint8 of shape (H, W, 3); got {pixels.dtype} of shape "
            f"{pixels.shape}."
        )
    quality = check_int("quality", quality, 1, 100)
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    room = np.empty(library().tjBufSize(width, height, TJSAMP_420), dtype=np.uint8)
    at, size = _POINTER(room.ctypes.data), _SIZE(room.size)
    with _handle(library().tjInitCompress) as handle:
        image = (pixels.ctypes.data, width, 3 * width, height, TJPF_RGB)
        target = (ctypes.byref(at), ctypes.byref(size))
        options = (TJSAMP_420, quality, _TJFLAG_NOREALLOC | _TJFLAG_ACCURATEDCT)
        _check(library().tjCompress2(handle, *image, *target, *options), handle)
    return room[: size.value].tobytes()


@contextmanager
def _handle(create: Callable[[], int | None]) -> Iterator[int]:
    # A new handle costs nothing compared to the work. A reused one would decode an image that has
    # lost its tables with the tables of the previous image.
    handle = create()
    if handle is None:
        raise MemoryError("TurboJPEG has no memory left")
    try:
        yield handle
    finally:
        library().tjDestroy(handle)


@contextmanager
def _decompressor(data: Data) -> Iterator[tuple[int, NDArray[np.uint8], JpegHeader]]:
    """Yield a handle, the data as an array (a copy only if not contiguous) and the header."""
    whole = data if isinstance(data, bytes | bytearray) else np.ascontiguousarray(data)
    source = np.frombuffer(whole, dtype=np.uint8)
    if not source.size:
        raise JpegError("there is no data")
    with _handle(library().tjInitDecompress) as handle:
        found = (_INT * 4)()
        at = ctypes.addressof(found)
        addresses = [at + number * ctypes.sizeof(_INT) for number in range(4)]
        read = library().tjDecompressHeader3
        _check(read(handle, source.ctypes.data, source.size, *addresses), handle)
        width, height, subsampling, colorspace = found
        if not width or not height:  # the data holds tables only
            raise JpegError("the data ends before an image begins")
        yield handle, source, JpegHeader(height, width, subsampling, colorspace)


def _decompress(
    handle: int,
    source: NDArray[np.uint8],
    height: int,
    width: int,
    fast: bool,
    kind: int = TJPF_RGB,
) -> NDArray[np.uint8]:
    channels = 3 if kind == TJPF_RGB else 4
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    # Stop at the first warning: a header of a few bytes may promise gigabytes of pixels.
    flags = _TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS | (TJFLAG_FASTDCT if fast else 0)
    image = (pixels.ctypes.data, width, channels * width, height, kind)
    run = library().tjDecompress2
    _check(run(handle, source.ctypes.data, source.size, *image, flags), handle)
    return pixels


def _check(status: int, handle: int) -> None:
    if status != 0:
        raise JpegError(library().tjGetErrorStr2(handle).decode("ascii", "replace"))
