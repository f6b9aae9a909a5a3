"""Store progressive and other unusual JPEGs as baseline JPEGs with the same pixels.

Only the entropy code changes: the coefficients are the same, and so are comments and metadata.
"""

import ctypes
from functools import cache

from .turbojpeg import JpegError, library

_INT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p
_STOP_ON_WARNING = 8192
_FRAME, _EXTENDED_FRAME, _SCAN, _RESTARTS = 0xC0, 0xC1, 0xDA, 0xDD
_OTHER_FRAMES = {*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC}  # except tables and reserved markers


class _Transform(ctypes.Structure):
    """`tjtransform` of turbojpeg.h. Zeros keep the whole image as it is."""

    _fields_ = [("region", _INT * 4), ("op", _INT), ("options", _INT), ("data", _POINTER * 2)]


@cache
def _interface() -> ctypes.CDLL:
    loaded = library()
    loaded.tjInitTransform.restype, loaded.tjInitTransform.argtypes = _POINTER, []
    loaded.tjFree.restype, loaded.tjFree.argtypes = None, [_POINTER]
    loaded.tjTransform.restype = _INT
    loaded.tjTransform.argtypes = [
        _POINTER, ctypes.c_char_p, _SIZE, _INT, _POINTER, _POINTER, _POINTER, _INT,
    ]  # fmt: skip
    return loaded


def is_baseline(data: bytes) -> bool:
    """Return whether a JPEG is sequential, in one scan, with Huffman codes, without restarts.

    The answer is also True for data without a readable header.
    """
    position, components = 2, 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _SCAN:
            return data[position + 4] == components
        if marker in _OTHER_FRAMES or (marker == _RESTARTS and any(data[position + 4 :][:2])):
            return False
        if marker in (_FRAME, _EXTENDED_FRAME):
            components = data[position + 9]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True


def to_baseline(data: bytes) -> bytes:
    """Return a JPEG as a baseline JPEG with the same pixels; `data` itself if it is one.

    The new JPEG has the standard Huffman tables, because TurboJPEG 2 optimises none here. It has
    about 10 % more bytes than a progressive JPEG; with optimised tables, it would have 6 % more.

    Raises:
        JpegError: the data is truncated, or corrupt where TurboJPEG detects it.
    """
    if is_baseline(data):
        return data
    turbojpeg = _interface()
    handle = turbojpeg.tjInitTransform()
    if handle is None:
        raise MemoryError("TurboJPEG has no memory left")
    out, size = _POINTER(), _SIZE()
    target = (ctypes.byref(out), ctypes.byref(size), ctypes.byref(_Transform()))
    try:
        if turbojpeg.tjTransform(handle, data, len(data), 1, *target, _STOP_ON_WARNING) != 0:
            raise JpegError(turbojpeg.tjGetErrorStr2(handle).decode("ascii", "replace"))
        return ctypes.string_at(out, size.value)
    finally:
        turbojpeg.tjFree(out)
        turbojpeg.tjDestroy(handle)
