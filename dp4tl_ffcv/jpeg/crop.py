"""Decode only as much of a JPEG as a crop needs, to the same bits as ffcv's decoder.

ffcv decodes the whole image to RGB. Here, only the crop is converted to RGB. With an index of the
JPEG (see `mcu_index.py`), only the MCUs of the crop are decoded, else all rows down to its last.
"""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled, copy_memory, inlined, memory_at, native, numbers_at
from ..kernels.scratch import aligned
from ..kernels.ycc import box_scratch_bytes, native_convert_box
from .calls import (
    decode_planes,
    decode_rgb,
    delete_decompressor,
    error_code,
    error_text,
    find_text,
    new_decompressor,
    read_header,
)
from .coding import FIELDS, FRAME, HORIZONTAL, VERTICAL, read_coding, size_in
from .excerpt import LEAD_IN_PIXELS, cut_excerpt
from .mcu_index import HEADER as INDEX_HEADER
from .turbojpeg import (
    TJCS_YCBCR,
    TJERR_WARNING,
    TJFLAG_FASTDCT,
    TJFLAG_LIMITSCANS,
    TJPF_RGB,
    TJSAMP_420,
    TJSAMP_422,
    TJSAMP_444,
)

# Status codes of `decode_crop`.
DECODED = 0
NOT_A_JPEG = 1  # the header cannot be read
WRONG_SIZE = 2  # the header states another height or width
CORRUPT = 3  # truncated or damaged data, or colours that have no RGB equivalent
BAD_REQUEST = 4  # a box outside the image, too little scratch memory, or no decompressor

# libjpeg's warning when more rows follow than the header states.
_ROWS_LEFT = np.frombuffer(b"extraneous bytes before marker\0", dtype=np.uint8)

# The scratch memory holds values that TurboJPEG reads and writes by address, what `read_coding`
# finds, planes or pixels, room for `convert_box`, and a JPEG.
HEADER, CODING = 256, 64
_COPY = 1 << 16  # bytes beyond one per pixel that a JPEG may have to be copied
_FLAGS = TJFLAG_FASTDCT | TJFLAG_LIMITSCANS


@compiled()
def _pixel_bytes(height: int, width: int) -> int:
    """Return the bytes of three planes or of RGB pixels, lead-in included."""
    return aligned(3 * aligned(height, 16) * (aligned(width, 16) + LEAD_IN_PIXELS))


@compiled()
def jpeg_scratch_bytes(max_height: int, max_width: int) -> int:
    """Return the bytes of scratch memory that `decode_crop` needs for images up to this size."""
    room = aligned(box_scratch_bytes(max_width))
    rest = aligned(max_height * max_width + _COPY)
    return HEADER + _pixel_bytes(max_height, max_width) + room + rest


@inlined
def _plan_planes(scratch: Any, sampling: Any, rows: Any, pitch: Any) -> Any:
    """Lay out planes of `rows` rows and `pitch` columns, which are whole blocks.

    Returns the addresses of TurboJPEG's lists of planes and of their strides, and the planes.
    """
    vertical, horizontal = sampling
    strides, planes = scratch[:12].view(np.int32), numbers_at(scratch.ctypes.data + 16, 3)
    strides[0], strides[1], strides[2] = pitch, pitch // horizontal, pitch // horizontal
    planes[0] = scratch.ctypes.data + HEADER
    planes[1] = planes[0] + rows * pitch
    planes[2] = planes[1] + rows // vertical * (pitch // horizontal)
    return planes.ctypes.data, strides.ctypes.data, planes


@inlined
def _decode_blocks(
    handle: Any, data: Any, coding: Any, shape: Any, is_part: Any, lists: Any, copy: Any
) -> bool:
    """Decode the first rows to planes of the `shape` (rows, columns); return whether it worked.

    Both are whole blocks, and a copy of the JPEG states them as its size. libjpeg then
    decodes in place, skips the remaining rows and warns about them. It reports the first warning
    only. Damage in the decoded rows therefore gives another warning, which counts as a failure.
    """
    if not read_coding(data, coding) or data.size > copy.size:
        return False
    copy_memory(copy.ctypes.data, data.ctypes.data, data.size)
    position, (rows, columns) = coding[FRAME], shape
    copy[position], copy[position + 1] = rows // 256, rows % 256
    copy[position + 2], copy[position + 3] = columns // 256, columns % 256
    planes, strides, flags = lists[0], lists[1], _FLAGS
    source, size = copy.ctypes.data, data.size
    if decode_planes(handle, source, size, planes, columns, strides, rows, flags) == 0:
        return True
    if not is_part or error_code(handle) != TJERR_WARNING:
        return False
    return bool(find_text(error_text(handle), _ROWS_LEFT.ctypes.data) != 0)


@inlined
def _crop_planes(
    handle: Any, data: Any, sampling: Any, size: Any, box: Any, parts: Any, out_at: Any
) -> Any:
    scratch, coding, room_at, copy = parts
    (vertical, horizontal), (height, width), (top, left, box_height, box_width) = (
        sampling,
        size,
        box,
    )
    pitch, whole = aligned(width, 8 * horizontal), aligned(height, 8 * vertical)
    lists = _plan_planes(scratch, sampling, whole, pitch)
    # Up to the last chroma row that contributes to the crop's last row.
    rows = aligned(min(top + box_height + vertical - 1, height), 8 * vertical)
    if not _decode_blocks(handle, data, coding, (rows, pitch), rows < height, lists, copy):
        rows, source, flags = height, data.ctypes.data, _FLAGS
        planes, strides = lists[0], lists[1]
        if decode_planes(handle, source, data.size, planes, width, strides, rows, flags) != 0:
            return CORRUPT
    luma, blue, red = lists[2]
    chroma_rows, columns = -(-min(rows, height) // vertical), -(-width // horizontal)
    native_convert_box(
        luma,
        rows,
        pitch,
        blue,
        red,
        chroma_rows,
        pitch // horizontal,
        columns,
        vertical,
        horizontal,
        top,
        left,
        room_at,
        out_at,
        box_height,
        box_width,
    )
    return DECODED


@inlined
def _crop_excerpt(
    handle: Any, data: Any, index: Any, size: Any, box: Any, parts: Any, out_at: Any
) -> Any:
    """Decode a box with the index of the JPEG; return False if that is not possible."""
    (scratch, coding, room_at, copy), (height, width) = parts, size
    top, left, box_height, box_width = box
    work = scratch[HEADER : HEADER + _pixel_bytes(height, width)]
    if not read_coding(data, coding) or size_in(data, coding) != size:
        return False
    length, first_row, first, mcu_rows, mcus, lead_in = cut_excerpt(
        data, coding, index, width, box, work, copy
    )
    if length == 0:
        return False
    vertical, horizontal = coding[VERTICAL], coding[HORIZONTAL]
    rows, pitch, chroma_pitch = 8 * vertical * mcu_rows, 8 * horizontal * mcus, 8 * mcus
    planes, strides, places = _plan_planes(scratch, (vertical, horizontal), rows, pitch)
    source, flags = copy.ctypes.data, _FLAGS
    if decode_planes(handle, source, length, planes, pitch, strides, rows, flags) != 0:
        return False
    # The planes begin after the lead-in, so that nothing is blended with its pixels.
    skip, (luma, blue, red) = 8 * lead_in, places
    native_convert_box(
        luma + skip * horizontal,
        rows,
        pitch,
        blue + skip,
        red + skip,
        min(8 * mcu_rows, -(-height // vertical) - 8 * first_row),
        chroma_pitch,
        -(-width // horizontal) - 8 * first,
        vertical,
        horizontal,
        top - 8 * vertical * first_row,
        left - 8 * horizontal * first,
        room_at,
        out_at,
        box_height,
        box_width,
    )
    return True


@inlined
def _crop_rgb(handle: Any, data: Any, size: Any, box: Any, scratch: Any, out_at: Any) -> Any:
    (height, width), (top, left, box_height, box_width) = size, box
    at, source, flags = scratch.ctypes.data + HEADER, data.ctypes.data, _FLAGS
    if decode_rgb(handle, source, data.size, at, width, 0, height, TJPF_RGB, flags) != 0:
        return CORRUPT
    for row in range(box_height):
        start = at + 3 * ((top + row) * width + left)
        copy_memory(out_at + 3 * row * box_width, start, 3 * box_width)
    return DECODED


@inlined
def _decode(handle: Any, data: Any, size: Any, box: Any, parts: Any, out_at: Any) -> Any:
    scratch, (height, width) = parts[0], size
    found = scratch[:16].view(np.int32)
    found[:] = 0  # remains 0 if the data ends before an image begins
    at = found.ctypes.data
    if read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12) != 0:
        return NOT_A_JPEG
    if found[0] == 0:
        return NOT_A_JPEG
    if found[0] != width or found[1] != height:
        return WRONG_SIZE
    subsampling = found[2]
    if found[3] == TJCS_YCBCR and subsampling in (TJSAMP_444, TJSAMP_422, TJSAMP_420):
        horizontal = np.int64(1 if subsampling == TJSAMP_444 else 2)
        vertical = np.int64(2 if subsampling == TJSAMP_420 else 1)
        return _crop_planes(handle, data, (vertical, horizontal), size, box, parts, out_at)
    return _crop_rgb(handle, data, size, box, scratch, out_at)


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
    room_at = HEADER + _pixel_bytes(height, width)
    copy = scratch[room_at + aligned(box_scratch_bytes(width)) :]
    coding = numbers_at(scratch_at + CODING, FIELDS)
    parts = scratch, coding, scratch_at + room_at, copy
    size, box = (height, width), (top, left, crop_height, crop_width)
    # A new decompressor costs nothing compared to decoding. A reused one would decode an image that
    # has lost its tables with the tables of the previous image, and TurboJPEG 2 would reject all
    # images after one with a damaged header.
    handle = new_decompressor()
    if handle == 0:
        return BAD_REQUEST
    if index.size > INDEX_HEADER:
        if _crop_excerpt(handle, data, index, size, box, parts, out_at):
            delete_decompressor(handle)
            return DECODED
        delete_decompressor(handle)
        handle = new_decompressor()
    status = _decode(handle, data, size, box, parts, out_at)
    delete_decompressor(handle)
    return int(status)


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

    Without an index, truncated data is always detected, and damage in the rows down to the last row
    of the box. Only `scratch` and `out` are written to, whatever the data. After a failure their
    contents are undefined.

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
