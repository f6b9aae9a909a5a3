"""Decode only as much of a JPEG as a crop needs, to the same bits as ffcv's decoder.

ffcv decodes the whole image to RGB. Here, rows below the crop are not decoded, and only the crop is
converted to RGB. Most of the remaining time is entropy decoding, which has to start at the first
row.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from numba import types

from ..kernels.compiled import compiled
from ..kernels.scratch import ALIGNMENT, aligned
from ..kernels.ycc import box_scratch_bytes, convert_box
from .turbojpeg import (
    TJCS_YCBCR,
    TJERR_WARNING,
    TJFLAG_FASTDCT,
    TJPF_RGB,
    TJSAMP_420,
    TJSAMP_422,
    TJSAMP_444,
    library,
)

# Status codes of `decode_crop`.
DECODED = 0
NOT_A_JPEG = 1  # the header cannot be read
WRONG_SIZE = 2  # the header states another height or width
CORRUPT = 3  # truncated or damaged data, or colours that have no RGB equivalent
BAD_REQUEST = 4  # a box outside the image, too little scratch memory, or no decompressor

_NUMBA_TYPES: dict[Any, Any] = {
    ctypes.c_int: types.int32,
    ctypes.c_ulong: types.uint64,
    ctypes.c_void_p: types.int64,
    ctypes.c_char_p: types.int64,
}


def _external(function: Any) -> Any:
    """Return a C function that compiled code calls by name.

    Numba also takes ctypes functions, but compiles their addresses in and so cannot cache the code.
    """
    name = f"dp4tl_ffcv.{function.__name__}"
    llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    result, *arguments = (_NUMBA_TYPES[kind] for kind in (function.restype, *function.argtypes))
    return types.ExternalFunction(name, result(*arguments))


_new = _external(library().tjInitDecompress)
_delete = _external(library().tjDestroy)
_read_header = _external(library().tjDecompressHeader3)
_decode_rgb = _external(library().tjDecompress2)
_decode_planes = _external(library().tjDecompressToYUVPlanes)
_error_code = _external(library().tjGetErrorCode)
_error_text = _external(library().tjGetErrorStr2)
_strstr = ctypes.CDLL(None).strstr
_strstr.restype, _strstr.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
_find_text = _external(_strstr)

# libjpeg's warning when more rows follow than the header states.
_ROWS_LEFT = np.frombuffer(b"extraneous bytes before marker\0", dtype=np.uint8)

_HEADER = 64  # bytes for values that TurboJPEG reads and writes by address
_COPY = 1 << 16  # bytes beyond one per pixel that a JPEG may have to be copied


@compiled()
def jpeg_scratch_bytes(max_height: int, max_width: int) -> int:
    """Return the bytes of scratch memory that `decode_crop` needs for images up to this size."""
    pixels = 3 * (aligned(max_height, 16) * aligned(max_width, 16) + ALIGNMENT)
    room = aligned(box_scratch_bytes(max_width))
    return aligned(_HEADER + pixels + room + max_height * max_width + _COPY)


@compiled()
def _size_position(data: Any) -> int:
    """Return the position of height and width in a JPEG, or 0 if `_decode_blocks` cannot be used.

    `_decode_blocks` needs a sequential JPEG with one scan for all components and without restart
    markers, whose header consists of consecutive segments.
    """
    found, components, position = 0, 0, 2
    while position + 10 <= data.size and data[position] == 0xFF:
        marker = data[position + 1]
        length = 256 * int(data[position + 2]) + int(data[position + 3])
        if marker == 0xDA:  # the first scan
            return found if data[position + 4] == components else 0
        if marker == 0xC0 or marker == 0xC1:  # baseline and extended sequential frames
            if found > 0:
                return 0
            found, components = position + 5, int(data[position + 9])
        elif not (marker == 0xC4 or marker == 0xDB or 0xE0 <= marker < 0xFF):
            return 0  # another frame type, restarts, or something libjpeg may read differently
        if length < 2:
            return 0
        position += 2 + length
    return 0


@compiled()
def _decode_blocks(
    handle: int,
    data: Any,
    rows: int,
    columns: int,
    is_part: bool,
    planes: Any,
    strides: Any,
    copy: Any,
) -> bool:
    """Decode the first `rows` rows to planes of `columns` columns, and return whether it worked.

    Both numbers are whole blocks, and a copy of the JPEG states them as its size. libjpeg then
    decodes in place, skips the remaining rows and warns about them. It reports the first warning
    only. Damage in the decoded rows therefore gives another warning, which counts as a failure.
    """
    position = _size_position(data)
    if position == 0 or data.size > copy.size:
        return False
    stated = copy[: data.size]
    for at in range(data.size):  # a slice would compile an error message about shapes for seconds
        stated[at] = data[at]
    stated[position], stated[position + 1] = rows // 256, rows % 256
    stated[position + 2], stated[position + 3] = columns // 256, columns % 256
    source, size, flags = stated.ctypes.data, stated.size, TJFLAG_FASTDCT
    if _decode_planes(handle, source, size, planes, columns, strides, rows, flags) == 0:
        return True
    if not is_part or _error_code(handle) != TJERR_WARNING:
        return False
    return bool(_find_text(_error_text(handle), _ROWS_LEFT.ctypes.data) != 0)


@compiled(inline="always")  # compiles faster
def _crop_planes(
    handle: int,
    data: Any,
    height: int,
    width: int,
    top: int,
    left: int,
    vertical: int,
    horizontal: int,
    scratch: Any,
    out: Any,
) -> int:
    pitch = aligned(width, 8 * horizontal)
    chroma_pitch, chroma_height = pitch // horizontal, -(-height // vertical)
    blue_at = _HEADER + aligned(pitch * aligned(height, 8 * vertical))
    chroma_size = aligned(chroma_pitch * aligned(chroma_height, 8))
    red_at = blue_at + chroma_size
    room_at = red_at + chroma_size
    copy_at = room_at + aligned(box_scratch_bytes(width))
    strides, planes = scratch[:12].view(np.int32), scratch[16:40].view(np.int64)
    strides[0], strides[1], strides[2] = pitch, chroma_pitch, chroma_pitch
    base = scratch.ctypes.data
    planes[0], planes[1], planes[2] = base + _HEADER, base + blue_at, base + red_at
    # Up to the last chroma row that contributes to the crop's last row.
    rows = aligned(min(top + out.shape[0] + vertical - 1, height), 8 * vertical)
    at, strides_at, copy = planes.ctypes.data, strides.ctypes.data, scratch[copy_at:]
    if not _decode_blocks(handle, data, rows, pitch, rows < height, at, strides_at, copy):
        rows, source, size, flags = height, data.ctypes.data, data.size, TJFLAG_FASTDCT
        if _decode_planes(handle, source, size, at, width, strides_at, rows, flags) != 0:
            return CORRUPT
    chroma_rows = min(-(-rows // vertical), chroma_height)
    luma = scratch[_HEADER : _HEADER + rows * pitch].reshape(rows, pitch)
    blue_end, red_end = blue_at + chroma_rows * chroma_pitch, red_at + chroma_rows * chroma_pitch
    blue = scratch[blue_at:blue_end].reshape(chroma_rows, chroma_pitch)
    red = scratch[red_at:red_end].reshape(chroma_rows, chroma_pitch)
    columns, room = -(-width // horizontal), scratch[room_at:copy_at]
    convert_box(luma, blue, red, columns, vertical, horizontal, top, left, room, out)
    return DECODED


@compiled()
def _crop_rgb(
    handle: int, data: Any, height: int, width: int, top: int, left: int, scratch: Any, out: Any
) -> int:
    image = scratch[_HEADER : _HEADER + 3 * height * width].reshape(height, 3 * width)
    source, size = data.ctypes.data, data.size
    at, flags = image.ctypes.data, TJFLAG_FASTDCT
    if _decode_rgb(handle, source, size, at, width, 0, height, TJPF_RGB, flags) != 0:
        return CORRUPT
    rows = out.reshape(out.shape[0], 3 * out.shape[1])
    for y in range(rows.shape[0]):
        target, pixels = rows[y], image[top + y][3 * left :]
        for x in range(target.size):
            target[x] = pixels[x]
    return DECODED


@compiled(inline="always")  # compiles faster
def _decode(
    handle: int, data: Any, height: int, width: int, top: int, left: int, scratch: Any, out: Any
) -> int:
    found = scratch[:16].view(np.int32)
    found[:] = 0  # remains 0 if the data ends before an image begins
    at = found.ctypes.data
    if _read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12) != 0:
        return NOT_A_JPEG
    if found[0] == 0:
        return NOT_A_JPEG
    if found[0] != width or found[1] != height:
        return WRONG_SIZE
    subsampling = found[2]
    if found[3] == TJCS_YCBCR and subsampling in (TJSAMP_444, TJSAMP_422, TJSAMP_420):
        horizontal = 1 if subsampling == TJSAMP_444 else 2
        vertical = 2 if subsampling == TJSAMP_420 else 1
        return _crop_planes(
            handle, data, height, width, top, left, vertical, horizontal, scratch, out
        )
    return _crop_rgb(handle, data, height, width, top, left, scratch, out)


@compiled()
def decode_crop(
    data: Any,
    height: int,
    width: int,
    top: int,
    left: int,
    crop_height: int,
    crop_width: int,
    scratch: Any,
    out: Any,
) -> int:
    """Decode a box of a JPEG to RGB, to the same bits as ffcv's decoder; return a status code.

    Truncated data is always detected; damage is detected in the rows down to the last row of the
    box. Only `scratch` and `out` are written to, whatever the data. After a failure their contents
    are undefined.

    `data`, `scratch` and `out` are contiguous uint8. `height` and `width` are the expected size of
    the image. `scratch` has `jpeg_scratch_bytes(height, width)` bytes that no other thread uses.
    `out` has the shape `(crop_height, crop_width, 3)`.
    """
    inside = 0 <= top < top + crop_height <= height and 0 <= left < left + crop_width <= width
    fits = out.shape[0] == crop_height and out.shape[1] == crop_width and out.shape[2] == 3
    if not inside or not fits or scratch.size < jpeg_scratch_bytes(height, width):
        return BAD_REQUEST
    # A new decompressor costs nothing compared to decoding. A reused one would decode an image that
    # has lost its tables with the tables of the previous image, and TurboJPEG 2 would reject all
    # images after one with a damaged header.
    handle = _new()
    if handle == 0:
        return BAD_REQUEST
    status = _decode(handle, data, height, width, top, left, scratch, out)
    _delete(handle)
    return status
