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

from ..kernels.compiled import compiled, copy_memory, memory_at, native
from ..kernels.scratch import ALIGNMENT, aligned
from ..kernels.ycc import TOO_NARROW, box_scratch_bytes, convert_box
from .coding import (
    COLUMNS,
    FIELDS,
    FRAME,
    HORIZONTAL,
    ROWS,
    SCAN,
    VERTICAL,
    read_coding,
)
from .excerpt import CODES, MOST_LEAD_IN, write_excerpt
from .mcu_index import build_index, build_scratch_bytes, read_entries, step_of
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
_LEAD_IN_PIXELS = 16 * MOST_LEAD_IN
_COPY = 1 << 16  # bytes beyond one per pixel that a JPEG may have to be copied


@compiled()
def jpeg_scratch_bytes(max_height: int, max_width: int) -> int:
    """Return the bytes of scratch memory that `decode_crop` needs for images up to this size."""
    row = aligned(max_width, 16) + _LEAD_IN_PIXELS
    pixels = 3 * (aligned(max_height, 16) * row + ALIGNMENT)
    room = aligned(box_scratch_bytes(max_width))
    return aligned(_HEADER + pixels + room + max_height * max_width + _COPY)


@compiled(inline="always")
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


@compiled(inline="always")
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
    copy_memory(stated.ctypes.data, data.ctypes.data, data.size)
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
    at, strides_at = _plane_arguments(scratch, blue_at, red_at, pitch, chroma_pitch)
    # Up to the last chroma row that contributes to the crop's last row.
    rows = aligned(min(top + out.shape[0] + vertical - 1, height), 8 * vertical)
    copy = scratch[copy_at:]
    if not _decode_blocks(handle, data, rows, pitch, rows < height, at, strides_at, copy):
        rows, source, size, flags = height, data.ctypes.data, data.size, TJFLAG_FASTDCT
        if _decode_planes(handle, source, size, at, width, strides_at, rows, flags) != 0:
            return CORRUPT
    chroma_rows = min(-(-rows // vertical), chroma_height)
    luma = _plane(scratch, _HEADER, rows, pitch)
    blue = _plane(scratch, blue_at, chroma_rows, chroma_pitch)
    red = _plane(scratch, red_at, chroma_rows, chroma_pitch)
    columns, room = -(-width // horizontal), scratch[room_at:copy_at]
    convert_box(luma, blue, red, columns, vertical, horizontal, top, left, room, out)
    return DECODED


@compiled()
def _size_in(data: Any, frame: Any) -> Any:
    """Return the height and width in the frame header at `frame`."""
    height = 256 * np.int64(data[frame]) + np.int64(data[frame + 1])
    return height, 256 * np.int64(data[frame + 2]) + np.int64(data[frame + 3])


@compiled(inline="always")
def _plane_arguments(scratch: Any, blue_at: int, red_at: int, pitch: int, chroma_pitch: int) -> Any:
    """Return the addresses of TurboJPEG's lists of planes and of their strides."""
    strides, planes = scratch[:12].view(np.int32), scratch[16:40].view(np.int64)
    strides[0], strides[1], strides[2] = pitch, chroma_pitch, chroma_pitch
    base = scratch.ctypes.data
    planes[0], planes[1], planes[2] = base + _HEADER, base + blue_at, base + red_at
    return planes.ctypes.data, strides.ctypes.data


@compiled()
def _plane(scratch: Any, at: int, rows: int, pitch: int) -> Any:
    return scratch[at : at + rows * pitch].reshape(rows, pitch)


@compiled(inline="always")
def _excerpt(data: Any, index: Any, box: Any, scratch: Any, coding: Any, out: Any) -> Any:
    """Write the excerpt of a JPEG that holds a box; return its bytes, or 0, and its lead-in.

    `box` is top, left, height and width in pixels, and becomes first row, first column, rows and
    columns in MCUs. `coding` receives what `read_coding` finds.
    """
    if not read_coding(data, coding):
        return 0, 0
    step = step_of(index)
    vertical, horizontal = coding[VERTICAL], coding[HORIZONTAL]
    rows, columns = coding[ROWS], coding[COLUMNS]
    # An upsampled pixel also depends on its neighbours.
    above, beside = vertical - 1, 2 * (horizontal - 1)
    first_row = max(box[0] - above, 0) // (8 * vertical)
    end_row = min((box[0] + box[2] - 1 + above) // (8 * vertical) + 1, rows)
    first = max(box[1] - beside, 0) // (8 * horizontal) // step * step
    end = min((box[1] + box[3] - 1 + beside) // (8 * horizontal) // step * step + step, columns)
    width = _size_in(data, coding[FRAME])[1]
    if first > 0 and -(-width // horizontal) - 8 * first <= TOO_NARROW:
        first -= step
    per_row = -(-columns // step)
    count = end_row * per_row + 1
    if scratch.size < 32 * (count + 2 * rows) + 8 * CODES:
        return 0, 0
    codes = scratch[: 8 * CODES].view(np.int64)
    entries = scratch[8 * CODES : 8 * (CODES + 4 * count)].view(np.int64).reshape((count, 4))
    if not read_entries(index, 8 * coding[SCAN], count, entries):
        return 0, 0
    box[0], box[1], box[2], box[3] = first_row, first, end_row - first_row, end - first
    ends = scratch[8 * (CODES + 4 * count) :][: 64 * box[2]].view(np.int64).reshape((box[2], 2, 4))
    for row in range(box[2]):
        start = (first_row + row) * per_row
        for column in range(4):
            ends[row, 0, column] = entries[start + first // step, column]
            ends[row, 1, column] = entries[start + -(-end // step), column]
    for lead_in in range(1, MOST_LEAD_IN + 1):
        size = write_excerpt(data, coding, ends, box[2], box[3], lead_in, codes, out)
        if size > 0:
            return size, lead_in
    return 0, 0


@compiled(inline="always")
def _crop_excerpt(
    handle: int,
    data: Any,
    index: Any,
    height: int,
    width: int,
    top: int,
    left: int,
    scratch: Any,
    out: Any,
) -> bool:
    """Decode a box with the index of the JPEG; return False if that is not possible."""
    room_at = _HEADER + aligned(3 * aligned(height, 16) * (aligned(width, 16) + _LEAD_IN_PIXELS))
    copy_at = room_at + aligned(box_scratch_bytes(width))
    work, room, copy = scratch[_HEADER:room_at], scratch[room_at:copy_at], scratch[copy_at:]
    numbers = work[: 8 * (4 + FIELDS)].view(np.int64)
    box, coding = numbers[:4], numbers[4:]
    box[0], box[1], box[2], box[3] = top, left, out.shape[0], out.shape[1]
    size, lead_in = _excerpt(data, index, box, work[aligned(8 * (4 + FIELDS)) :], coding, copy)
    if size == 0 or _size_in(data, coding[FRAME]) != (height, width):
        return False
    vertical, horizontal = coding[VERTICAL], coding[HORIZONTAL]
    first_row, first, mcu_rows, mcus = box[0], box[1], box[2], box[3] + lead_in
    rows, pitch = 8 * vertical * mcu_rows, 8 * horizontal * mcus
    chroma_rows, chroma_pitch = 8 * mcu_rows, 8 * mcus
    blue_at = _HEADER + rows * pitch
    red_at = blue_at + chroma_rows * chroma_pitch
    planes, strides = _plane_arguments(scratch, blue_at, red_at, pitch, chroma_pitch)
    flags = TJFLAG_FASTDCT
    if _decode_planes(handle, copy.ctypes.data, size, planes, pitch, strides, rows, flags) != 0:
        return False
    # The views start after the lead-in, so that nothing is blended with its pixels.
    skip = 8 * lead_in
    chroma_rows = min(chroma_rows, -(-height // vertical) - 8 * first_row)
    luma = _plane(scratch, _HEADER + skip * horizontal, rows, pitch)
    blue = _plane(scratch, blue_at + skip, chroma_rows, chroma_pitch)
    red = _plane(scratch, red_at + skip, chroma_rows, chroma_pitch)
    columns = -(-width // horizontal) - 8 * first
    y, x = top - 8 * vertical * first_row, left - 8 * horizontal * first
    convert_box(luma, blue, red, columns, vertical, horizontal, y, x, room, out)
    return True


@compiled(inline="always")
def _crop_rgb(
    handle: int, data: Any, height: int, width: int, top: int, left: int, scratch: Any, out: Any
) -> int:
    source, size, at, flags = (
        data.ctypes.data,
        data.size,
        scratch.ctypes.data + _HEADER,
        TJFLAG_FASTDCT,
    )
    if _decode_rgb(handle, source, size, at, width, 0, height, TJPF_RGB, flags) != 0:
        return CORRUPT
    row, pitch = 3 * out.shape[1], 3 * width
    for y in range(out.shape[0]):
        copy_memory(out.ctypes.data + y * row, at + (top + y) * pitch + 3 * left, row)
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


@native()
def _decode_crop(  # noqa: PLR0913  # numbers instead of arrays
    data_at: int,
    data_size: int,
    index_at: int,
    index_size: int,
    height: int,
    width: int,
    top: int,
    left: int,
    crop_height: int,
    crop_width: int,
    scratch_at: int,
    scratch_size: int,
    out_at: int,
) -> int:
    data, index = memory_at(data_at, data_size), memory_at(index_at, index_size)
    scratch = memory_at(scratch_at, scratch_size)
    size = crop_height * crop_width * 3
    out = memory_at(out_at, size).reshape((crop_height, crop_width, 3))
    # A new decompressor costs nothing compared to decoding. A reused one would decode an image that
    # has lost its tables with the tables of the previous image, and TurboJPEG 2 would reject all
    # images after one with a damaged header.
    handle = _new()
    if handle == 0:
        return BAD_REQUEST
    if index.size > 0:
        if _crop_excerpt(handle, data, index, height, width, top, left, scratch, out):
            _delete(handle)
            return DECODED
        _delete(handle)
        handle = _new()
    status = _decode(handle, data, height, width, top, left, scratch, out)
    _delete(handle)
    return status


@compiled()
def decode_crop(
    data: Any,
    index: Any,
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

    `index` is the index of the JPEG, for which `is_index_of` is True, or empty. With an index, only
    the data of the box is decoded, and only that is checked for damage.

    `data`, `scratch` and `out` are contiguous uint8. `height` and `width` are the expected size of
    the image. `scratch` has `jpeg_scratch_bytes(height, width)` bytes that no other thread uses.
    `out` has the shape `(crop_height, crop_width, 3)`.
    """
    inside = 0 <= top < top + crop_height <= height and 0 <= left < left + crop_width <= width
    fits = out.shape[0] == crop_height and out.shape[1] == crop_width and out.shape[2] == 3
    if not inside or not fits or scratch.size < jpeg_scratch_bytes(height, width):
        return BAD_REQUEST
    return int(
        _decode_crop(
            data.ctypes.data,
            data.size,
            index.ctypes.data,
            index.size,
            height,
            width,
            top,
            left,
            crop_height,
            crop_width,
            scratch.ctypes.data,
            scratch.size,
            out.ctypes.data,
        )
    )


@native()
def _index_jpeg(
    data_at: int,
    data_size: int,
    height: int,
    width: int,
    scratch_at: int,
    scratch_size: int,
    out_at: int,
    out_size: int,
) -> int:
    data, out = memory_at(data_at, data_size), memory_at(out_at, out_size)
    scratch = memory_at(scratch_at, scratch_size)
    coding, found = scratch[64 : 64 + 8 * FIELDS].view(np.int64), scratch[:16].view(np.int32)
    found[:] = 0
    if not read_coding(data, coding) or _size_in(data, coding[FRAME]) != (height, width):
        return 0
    rest = scratch[aligned(64 + 8 * FIELDS) :]
    if rest.size < build_scratch_bytes(coding[ROWS], coding[COLUMNS]):
        return 0
    # libjpeg decides by more than the frame header whether the components are YCbCr.
    handle = _new()
    at = found.ctypes.data
    status = _read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12)
    _delete(handle)
    if status != 0 or found[3] != TJCS_YCBCR:
        return 0
    return int(build_index(data, coding, rest, out))


@compiled()
def index_jpeg(data: Any, height: int, width: int, scratch: Any, out: Any) -> int:
    """Write the index of a JPEG to `out` for `decode_crop`; return its bytes, or 0 without one.

    Arguments as for `decode_crop`. `out` is contiguous uint8 at a multiple of 8 bytes; an index
    takes at most `LARGEST_SHARE` of the JPEG.
    """
    return int(
        _index_jpeg(
            data.ctypes.data,
            data.size,
            height,
            width,
            scratch.ctypes.data,
            scratch.size,
            out.ctypes.data,
            out.size,
        )
    )
