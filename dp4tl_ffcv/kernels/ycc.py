"""Convert a box of a JPEG's Y, Cb and Cr planes to RGB, bit for bit like libjpeg-turbo.

Decoding to planes and converting a box costs less than decoding the image to RGB. The conversion is
libjpeg-turbo's: "fancy" upsampling of the chroma planes, then JFIF's matrix in 16-bit fixed point.
"""

from typing import Any

import numpy as np

from .compiled import compiled, memory_at, native

# JFIF's factors 0.34414, 0.71414, 1.402 and 1.772 in units of 2^-16, minus the whole numbers that
# bring them into 16 bits. The whole numbers are added separately.
_GREEN_OF_BLUE = np.int32(-22554)
_GREEN_OF_RED = np.int32(18734)
_RED = np.int32(26345)
_BLUE = np.int32(-14942)

# libjpeg-turbo repeats pixels instead of blending them in chroma planes with this few columns.
TOO_NARROW = 2


@compiled()
def _high(value: Any, factor: Any) -> Any:
    return np.int16((np.int32(value) * factor) >> 16)


@compiled()
def _low(value: Any, factor: Any) -> Any:
    return np.uint16((np.int32(value) * factor) & 0xFFFF)


@compiled()
def _rounded(value: Any, factor: Any) -> Any:
    """Return `value * factor / 65536`, rounded half up."""
    return np.int16(np.int16(_high(np.int16(value + value), factor) + np.int16(1)) >> 1)


@compiled()
def _clamped(value: Any) -> Any:
    return np.uint8(min(max(value, np.int16(0)), np.int16(255)))


@compiled()
def _convert_row(
    luma: Any, y: Any, left: Any, blue: Any, red: Any, chroma_y: Any, chroma_left: Any, row: Any
) -> None:
    # A vector register holds twice as many 16-bit as 32-bit numbers.
    for column in range(row.size // 3):
        x = np.uintp(column)
        y_value = np.int16(luma[y, left + x])
        b = np.int16(np.int16(blue[chroma_y, chroma_left + x]) - np.int16(128))
        r = np.int16(np.int16(red[chroma_y, chroma_left + x]) - np.int16(128))
        # Green rounds the sum of two products: their low halves and 1/2 may carry twice.
        half = np.uint16((np.int32(_low(b, _GREEN_OF_BLUE)) + np.int32(0x8000)) & 0xFFFF)
        term = _low(r, _GREEN_OF_RED)
        green = np.int16(_high(b, _GREEN_OF_BLUE) + _high(r, _GREEN_OF_RED))
        if half < np.uint16(0x8000):
            green = np.int16(green + np.int16(1))
        if np.uint16((np.int32(half) + np.int32(term)) & 0xFFFF) < term:
            green = np.int16(green + np.int16(1))
        row[3 * column] = _clamped(np.int16(y_value + r + _rounded(r, _RED)))
        row[3 * column + 1] = _clamped(np.int16(y_value - r + green))
        row[3 * column + 2] = _clamped(np.int16(y_value + b + b + _rounded(b, _BLUE)))


@compiled()
def _upsample_row(
    plane: Any, width: int, near: Any, far: Any, first: int, is_sum: bool, sums: Any, wide: Any
) -> None:
    """Upsample 3/4 of the chroma row `near` and 1/4 of the row `far`, from column `first` on."""
    count = wide.size // 2
    # One more column on either side, repeated from the edge where the image ends.
    start, stop = max(first - 1, 0), min(first + count + 1, width)
    origin, offset = np.uintp(start), np.uintp(start - (first - 1))
    for column in range(stop - start):
        x = np.uintp(column)
        sums[offset + x] = np.uint16(
            np.uint16(plane[near, origin + x]) * np.uint16(3) + np.uint16(plane[far, origin + x])
        )
    if first == 0:
        sums[0] = sums[1]
    if first + count == width:
        sums[count + 1] = sums[count]
    # In sixteenths: 4 and 8 of them are the quarters by which 4:2:2 is rounded.
    even, odd = np.uint16(8 if is_sum else 4), np.uint16(7 if is_sum else 8)
    for column in range(count):
        x = np.uintp(column)
        thrice = np.uint16(sums[x + np.uintp(1)] * np.uint16(3))
        wide[2 * column] = np.uint8(np.uint16(thrice + sums[x] + even) >> np.uint16(4))
        wide[2 * column + 1] = np.uint8(
            np.uint16(thrice + sums[x + np.uintp(2)] + odd) >> np.uint16(4)
        )


@compiled()
def box_scratch_bytes(width: int) -> int:
    """Return the bytes of scratch memory that `convert_box` needs for `width` columns."""
    return 6 * (width // 2 + 4)


@native()
def native_convert_box(  # noqa: PLR0913  # numbers instead of arrays
    luma_at: int,
    luma_rows: int,
    pitch: int,
    blue_at: int,
    red_at: int,
    chroma_rows: int,
    chroma_pitch: int,
    columns: int,
    vertical: int,
    horizontal: int,
    top: int,
    left: int,
    scratch_at: int,
    out_at: int,
    height: int,
    width: int,
) -> int:
    """Do what `convert_box` does, with addresses instead of arrays."""
    luma = memory_at(luma_at, luma_rows * pitch).reshape((luma_rows, pitch))
    blue = memory_at(blue_at, chroma_rows * chroma_pitch).reshape((chroma_rows, chroma_pitch))
    red = memory_at(red_at, chroma_rows * chroma_pitch).reshape((chroma_rows, chroma_pitch))
    scratch = memory_at(scratch_at, box_scratch_bytes(width))
    flat = memory_at(out_at, height * 3 * width).reshape((height, 3 * width))
    x = np.uintp(left)
    if horizontal == 1:
        for row in range(height):
            y = np.uintp(top + row)
            _convert_row(luma, y, x, blue, red, y, x, flat[row])
        return 0
    first = left // 2
    count = (left + width - 1) // 2 - first + 1
    room = width // 2 + 4
    sums = scratch[: 2 * room].view(np.uint16)
    wide_blue = scratch[2 * room : 2 * room + 2 * count]
    wide_red = scratch[4 * room : 4 * room + 2 * count]
    blue_row, red_row = wide_blue.reshape(1, 2 * count), wide_red.reshape(1, 2 * count)
    skip, zero = np.uintp(left - 2 * first), np.uintp(0)
    for row in range(height):
        line = top + row
        near = far = line // vertical
        if vertical == 2:
            far = max(near - 1, 0) if line % 2 == 0 else min(near + 1, blue.shape[0] - 1)
        if columns > TOO_NARROW:
            n, f, is_sum = np.uintp(near), np.uintp(far), vertical == 2
            _upsample_row(blue, columns, n, f, first, is_sum, sums, wide_blue)
            _upsample_row(red, columns, n, f, first, is_sum, sums, wide_red)
        else:
            for column in range(2 * count):
                wide_blue[column] = blue[near, first + column // 2]
                wide_red[column] = red[near, first + column // 2]
        _convert_row(luma, np.uintp(line), x, blue_row, red_row, zero, skip, flat[row])
    return 0


@compiled()
def convert_box(
    luma: Any,
    blue: Any,
    red: Any,
    columns: int,
    vertical: int,
    horizontal: int,
    top: int,
    left: int,
    scratch: Any,
    out: Any,
) -> None:
    """Convert the box at `top` and `left` to RGB, without checks and without allocation.

    `R = Y + 1.402 r`, `G = Y - 0.34414 b - 0.71414 r` and `B = Y + 1.772 b`, clamped to [0, 255],
    where b and r are the upsampled chroma minus 128. Products are in units of 2^-16, and sums are
    rounded half up. Along each subsampled axis, an upsampled chroma pixel is 3/4 of the nearest and
    1/4 of the second nearest pixel. Planes of one or two columns are upsampled by repetition.

    `vertical` and `horizontal` are 1, 1 for 4:4:4, 1, 2 for 4:2:2, and 2, 2 for 4:2:0. The planes
    and `out`, uint8 `(height, width, 3)` of the box, are C-contiguous. Planes may have more columns
    than the image, whose chroma has `columns` columns and the rows of `blue`. `scratch` has
    `box_scratch_bytes(width)` bytes at an even address that no other thread uses.
    """
    native_convert_box(
        luma.ctypes.data,
        luma.shape[0],
        luma.shape[1],
        blue.ctypes.data,
        red.ctypes.data,
        blue.shape[0],
        blue.shape[1],
        columns,
        vertical,
        horizontal,
        top,
        left,
        scratch.ctypes.data,
        out.ctypes.data,
        out.shape[0],
        out.shape[1],
    )
