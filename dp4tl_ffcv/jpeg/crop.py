"""Decoding only as much of a JPEG as a crop needs, to the bits that ffcv's decoder yields.

ffcv decodes the whole image to RGB. Here the rows below the crop are left undecoded, and of the
rest only the crop is converted to RGB; what takes the time then is the entropy coding, which has to
be undone from the first row on.
"""

import ctypes
from typing import Any

import ffcv._libffcv
import numpy as np
from llvmlite import binding as llvm
from numba import types

from ..kernels.compiled import compiled
from ..kernels.ycc import box_scratch_bytes, convert_box

# What `decode_crop` returns.
DECODED = 0
NOT_A_JPEG = 1  # the header cannot be read
WRONG_SIZE = 2  # the header gives another height or width
CORRUPT = 3  # truncated or damaged data, or colours that have no RGB
BAD_REQUEST = 4  # a box outside the image, too little scratch memory, or no decompressor

# Of TurboJPEG's interface.
_RGB = 0  # TJPF_RGB
_FAST_DCT = 2048  # TJFLAG_FASTDCT, which ffcv decodes with
_WARNING = 0  # TJERR_WARNING
_YCBCR = 1  # TJCS_YCbCr
_444, _422, _420 = 0, 1, 2  # TJSAMP_*

# TurboJPEG, in the build that ffcv itself decodes with.
_library = ctypes.CDLL(ffcv._libffcv.__file__)


def _external(function: Any, signature: Any) -> Any:
    """Return a C function for compiled code to call, by name.

    Numba takes ctypes' functions too, but compiles their addresses in and so cannot cache the code.
    """
    name = f"dp4tl_ffcv.{function.__name__}"
    llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return types.ExternalFunction(name, signature)


_INT, _ADDRESS = types.int32, types.int64
_new = _external(_library.tjInitDecompress, _ADDRESS())
_delete = _external(_library.tjDestroy, _INT(_ADDRESS))
_SOURCE = (_ADDRESS, _ADDRESS, types.uint64)  # the decompressor, the data and its size
_read_header = _external(_library.tjDecompressHeader3, _INT(*_SOURCE, *4 * (_ADDRESS,)))
_decode_rgb = _external(_library.tjDecompress2, _INT(*_SOURCE, _ADDRESS, *5 * (_INT,)))
_decode_planes = _external(
    _library.tjDecompressToYUVPlanes, _INT(*_SOURCE, _ADDRESS, _INT, _ADDRESS, _INT, _INT)
)
_error_code = _external(_library.tjGetErrorCode, _INT(_ADDRESS))
_error_text = _external(_library.tjGetErrorStr2, _ADDRESS(_ADDRESS))
_find_text = _external(ctypes.CDLL(None).strstr, _ADDRESS(_ADDRESS, _ADDRESS))

# libjpeg's warning when rows follow those that it was told of.
_ROWS_LEFT = np.frombuffer(b"extraneous bytes before marker\0", dtype=np.uint8)

_ALIGNMENT = 64
_HEADER = 64  # bytes for what TurboJPEG returns and takes by address
_COPY = 1 << 16  # bytes beyond one per pixel that an image to be copied may have


@compiled()
def _up_to(size: int, multiple: int) -> int:
    return (size + multiple - 1) // multiple * multiple


@compiled()
def jpeg_scratch_bytes(max_height: int, max_width: int) -> int:
    """Return how many bytes of scratch memory `decode_crop` needs for images up to this size."""
    pixels = 3 * (_up_to(max_height, 16) * _up_to(max_width, 16) + _ALIGNMENT)
    room = _up_to(box_scratch_bytes(max_width), _ALIGNMENT)
    return _up_to(_HEADER + pixels + room + max_height * max_width + _COPY, _ALIGNMENT)


@compiled()
def _size_position(data: Any) -> int:
    """Find where a JPEG states its height and width, or return 0.

    Also 0 if it is not sequential with one scan for all components, if it has restart markers, or
    if its header holds anything but segments one after another.
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
            return 0  # another kind of frame, restarts, or what libjpeg may read otherwise
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
    """Decode the first `rows` rows to planes of `columns` columns, and say whether that went well.

    Both are whole blocks, which a copy of the image states as its size: libjpeg then decodes in
    place, skips the rows that follow and warns of them. It keeps the first warning, so that one of
    anything before those rows is seen: it counts as a failure.
    """
    position = _size_position(data)
    if position == 0 or data.size > copy.size:
        return False
    stated = copy[: data.size]
    for at in range(data.size):  # a slice would compile an error message about shapes for seconds
        stated[at] = data[at]
    stated[position], stated[position + 1] = rows // 256, rows % 256
    stated[position + 2], stated[position + 3] = columns // 256, columns % 256
    source, size, flags = stated.ctypes.data, stated.size, _FAST_DCT
    if _decode_planes(handle, source, size, planes, columns, strides, rows, flags) == 0:
        return True
    if not is_part or _error_code(handle) != _WARNING:
        return False
    return bool(_find_text(_error_text(handle), _ROWS_LEFT.ctypes.data) != 0)


@compiled()
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
    pitch = _up_to(width, 8 * horizontal)
    chroma_pitch, chroma_height = pitch // horizontal, -(-height // vertical)
    blue_at = _HEADER + _up_to(pitch * _up_to(height, 8 * vertical), _ALIGNMENT)
    chroma_size = _up_to(chroma_pitch * _up_to(chroma_height, 8), _ALIGNMENT)
    red_at = blue_at + chroma_size
    room_at = red_at + chroma_size
    copy_at = room_at + _up_to(box_scratch_bytes(width), _ALIGNMENT)
    strides, planes = scratch[:12].view(np.int32), scratch[16:40].view(np.int64)
    strides[0], strides[1], strides[2] = pitch, chroma_pitch, chroma_pitch
    base = scratch.ctypes.data
    planes[0], planes[1], planes[2] = base + _HEADER, base + blue_at, base + red_at
    # To the last row of chroma that the crop's last row is mixed from.
    rows = _up_to(min(top + out.shape[0] + vertical - 1, height), 8 * vertical)
    at, strides_at, copy = planes.ctypes.data, strides.ctypes.data, scratch[copy_at:]
    if not _decode_blocks(handle, data, rows, pitch, rows < height, at, strides_at, copy):
        rows, source, size, flags = height, data.ctypes.data, data.size, _FAST_DCT
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
    at, flags = image.ctypes.data, _FAST_DCT
    if _decode_rgb(handle, source, size, at, width, 0, height, _RGB, flags) != 0:
        return CORRUPT
    rows = out.reshape(out.shape[0], 3 * out.shape[1])
    for y in range(rows.shape[0]):
        target, pixels = rows[y], image[top + y][3 * left :]
        for x in range(target.size):
            target[x] = pixels[x]
    return DECODED


@compiled()
def _decode(
    handle: int, data: Any, height: int, width: int, top: int, left: int, scratch: Any, out: Any
) -> int:
    found = scratch[:16].view(np.int32)
    found[:] = 0  # and so they stay where the data ends before an image begins
    at = found.ctypes.data
    if _read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12) != 0:
        return NOT_A_JPEG
    if found[0] == 0:
        return NOT_A_JPEG
    if found[0] != width or found[1] != height:
        return WRONG_SIZE
    if found[3] == _YCBCR and found[2] in (_444, _422, _420):
        horizontal, vertical = 1 if found[2] == _444 else 2, 2 if found[2] == _420 else 1
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
    """Decode a box of a JPEG to RGB, with the bits that ffcv's decoder gives its pixels.

    Damage is told where it shows in the rows down to the last one of the box; data that ends
    early is always told. Nothing outside `scratch` and `out` is written to, whatever the data.
    After a failure the contents of both are undefined.

    Args:
        data: the JPEG, uint8 `(n,)`, contiguous.
        height: rows that the image must have.
        width: columns that the image must have.
        top: first row of the box.
        left: first column of the box.
        crop_height: rows of the box.
        crop_width: columns of the box.
        scratch: uint8, contiguous, `jpeg_scratch_bytes(height, width)` bytes or more, that no
            other thread uses.
        out: uint8 `(crop_height, crop_width, 3)`, contiguous.

    Returns:
        `DECODED`, or what was wrong: `NOT_A_JPEG`, `WRONG_SIZE`, `CORRUPT` or `BAD_REQUEST`.
    """
    inside = 0 <= top < top + crop_height <= height and 0 <= left < left + crop_width <= width
    fits = out.shape[0] == crop_height and out.shape[1] == crop_width and out.shape[2] == 3
    if not inside or not fits or scratch.size < jpeg_scratch_bytes(height, width):
        return BAD_REQUEST
    # A new decompressor costs nothing beside the decoding. One that is used again would decode an
    # image that has lost its tables with those of the image before; after an error in a header
    # TurboJPEG 2 would refuse all images that follow.
    handle = _new()
    if handle == 0:
        return BAD_REQUEST
    status = _decode(handle, data, height, width, top, left, scratch, out)
    _delete(handle)
    return status
