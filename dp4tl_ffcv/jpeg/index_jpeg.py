"""Make the index of a JPEG, for `crop.decode_crop`."""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled, memory_at, native, numbers_at
from .calls import delete_decompressor, new_decompressor, read_header
from .coding import COLUMNS, FIELDS, ROWS, read_coding, size_in
from .crop import CODING, HEADER, jpeg_scratch_bytes
from .mcu_index import build_index, build_scratch_bytes
from .turbojpeg import TJCS_YCBCR


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
    coding = numbers_at(scratch_at + CODING, FIELDS)
    found = scratch[:16].view(np.int32)
    found[:] = 0
    if not read_coding(data, coding) or size_in(data, coding) != (height, width):
        return 0
    rest = scratch[HEADER:]
    if rest.size < build_scratch_bytes(coding[ROWS], coding[COLUMNS]):
        return 0
    # libjpeg decides by more than the frame header whether the components are YCbCr.
    handle = new_decompressor()
    at = found.ctypes.data
    status = read_header(handle, data.ctypes.data, data.size, at, at + 4, at + 8, at + 12)
    delete_decompressor(handle)
    if status != 0 or found[3] != TJCS_YCBCR:
        return 0
    return int(build_index(data, coding, rest, out))


@compiled()
def index_jpeg(data: Any, height: int, width: int, scratch: Any, out: Any) -> int:
    """Write the index of a JPEG to `out` for `decode_crop`; return its bytes, or 0 without one.

    Arguments as for `decode_crop`. `out` is contiguous uint8 at a multiple of 8 bytes; an index
    takes at most `LARGEST_SHARE` of the JPEG.
    """
    if scratch.size < jpeg_scratch_bytes(height, width):
        return 0
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
