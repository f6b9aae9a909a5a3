"""Crop and resize with an area filter, within one grey level of OpenCV's INTER_AREA.

Source rows are blended into destination rows, 32 elements at a time. Blocks of 32 such rows are
transposed, so that columns are blended by the same vector operations, and the result is transposed
back. Everything is uint16 fixed point: twice the lanes of float32 and no conversions.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..validate import check_ints
from .compiled import compiled, memory_at, native
from .scratch import ALIGNMENT, aligned
from .simd import LANES, TILE, load, spread, store, times, transpose

_STRONGEST = 128  # factor by which an axis may shrink before uint16 has too few bits

_jit = compiled()


@_jit
def _fill_table(table: Any, length: int, linear: bool) -> None:
    # A row (first, last, head, tail) defines a destination pixel as
    #   (1 - head) source[first] + sum of the pixels between + tail source[last],
    # divided by the scale for the area filter. Head and tail are in units of 2**-16.
    inverse = table.shape[0] / length
    scale = 1.0 / inverse
    for place in range(table.shape[0]):
        if linear:
            first = int(np.floor(place * scale))
            # OpenCV rounds to float32, which can reach a whole number and so another pixel.
            ahead = max(0.0, float(np.float32((place + 1) - (first + 1) * inverse)))
            head = ahead - np.floor(ahead)
            if first >= length - 1:
                first, head = length - 1, 0.0
            last, tail = min(first + 1, length - 1), head
        else:
            start, stop = place * scale, (place + 1) * scale
            first, last = min(int(start), length - 1), int(stop)
            head, tail = start - first, stop - last
            if last >= length:
                last = length - 1
                tail = 1.0 if last > first else 0.0
        table[place, 0] = first
        table[place, 1] = last
        table[place, 2] = min(int(head * 65536 + 0.5), 65535)
        table[place, 3] = min(int(tail * 65536 + 0.5), 65535)


@_jit
def _blend_ends(values: Any, first: int, last: int, head: Any, tail: Any) -> Any:
    value = load(values, first)
    return value - times(value, head) + times(load(values, last), tail)


@_jit
def _blend_rows(
    pixels: Any, corner: int, pitch: int, length: int, table: Any, shift: Any, norm: Any, rows: Any
) -> None:
    bits, factor = spread(np.uint16(shift)), spread(np.uint16(norm))
    stride = rows.shape[0] // LANES
    for row in range(table.shape[0]):
        head, tail = spread(np.uint16(table[row, 2])), spread(np.uint16(table[row, 3]))
        for column in range(0, length, LANES):
            spot = min(column, length - LANES)  # the last vector overlaps the previous one
            first = corner + pitch * table[row, 0] + spot
            last = corner + pitch * table[row, 1] + spot
            value = load(pixels, first) << bits
            total = value - times(value, head) + times(load(pixels, last) << bits, tail)
            first += pitch
            if first < last:
                between = load(pixels, first)
                first += pitch
                while first < last:
                    between = between + load(pixels, first)
                    first += pitch
                total = total + (between << bits)
            store(rows, stride * row + spot, times(total, factor))


@_jit
def _blend_columns(
    columns: Any, table: Any, norm: Any, half: Any, mirrored: bool, blended: Any
) -> None:
    factor, offset, bits = spread(np.uint16(norm)), spread(np.uint16(half)), spread(np.uint16(7))
    pitch = 3 * LANES
    for place in range(table.shape[0]):
        head, tail = spread(np.uint16(table[place, 2])), spread(np.uint16(table[place, 3]))
        first, last = pitch * table[place, 0], pitch * table[place, 1]
        # One loop for all three channels, because branches on its length are mispredicted.
        red = _blend_ends(columns, first, last, head, tail)
        green = _blend_ends(columns, first + LANES, last + LANES, head, tail)
        blue = _blend_ends(columns, first + 2 * LANES, last + 2 * LANES, head, tail)
        first += pitch
        while first < last:
            red = red + load(columns, first)
            green = green + load(columns, first + LANES)
            blue = blue + load(columns, first + 2 * LANES)
            first += pitch
        spot = pitch * (table.shape[0] - 1 - place if mirrored else place)
        store(blended, spot, (times(red, factor) + offset) >> bits)
        store(blended, spot + LANES, (times(green, factor) + offset) >> bits)
        store(blended, spot + 2 * LANES, (times(blue, factor) + offset) >> bits)


@_jit
def _write_rows(blended: Any, destination: Any, row: int, corner: Any) -> None:
    # Two neighbouring bytes are packed into one little-endian uint16, which halves the transposing.
    pitch = 3 * destination.shape[1]
    height, eight = min(LANES, destination.shape[0] - row), spread(np.uint16(8))
    for pair in range((pitch + 1) // 2):
        low = load(blended, 2 * LANES * pair)
        store(blended, LANES * pair, low | (load(blended, 2 * LANES * pair + LANES) << eight))
    target = destination.reshape(destination.size)
    for first in range(0, height, TILE):
        for column in range(0, pitch, 2 * TILE):
            source_at, target_at = LANES * column // 2 + first, pitch * (row + first) + column
            if first + TILE <= height and column + 2 * TILE <= pitch:
                transpose(blended, source_at, LANES, target, target_at, pitch)
                continue
            transpose(blended, source_at, LANES, corner, 0, 2 * TILE)
            for line in range(min(TILE, height - first)):
                for byte in range(min(2 * TILE, pitch - column)):
                    target[target_at + pitch * line + byte] = corner[2 * TILE * line + byte]


@_jit
def _weight(place: int, first: int, last: int, head: int, tail: int) -> float:
    whole = 1.0 if place == first or place < last else 0.0
    before = head / 65536 if place == first else 0.0
    return whole - before + (tail / 65536 if place == last else 0.0)


@_jit
def _resize_plainly(
    pixels: Any, top: int, left: int, down: Any, across: Any, mirrored: bool, destination: Any
) -> None:
    # For crops narrower than a vector and for reductions beyond the range of uint16.
    for row in range(destination.shape[0]):
        first, last, head, tail = down[row]
        for column in range(destination.shape[1]):
            start, stop, fore, rear = across[column]
            spot = destination.shape[1] - 1 - column if mirrored else column
            for channel in range(3):
                total, sum_of_weights = 0.0, 0.0
                for y in range(first, last + 1):
                    height = _weight(y, first, last, head, tail)
                    for x in range(start, stop + 1):
                        weight = height * _weight(x, start, stop, fore, rear)
                        total += weight * pixels[top + y, left + x, channel]
                        sum_of_weights += weight
                destination[row, spot, channel] = int(total / sum_of_weights + 0.5)


@_jit
def _fraction_bits(most: int, scale: float) -> int:
    bits = most
    while scale * (1 << bits) > 256:  # so that 255 times the sum fits into uint16
        bits -= 1
    return bits


@_jit
def _carve(scratch: Any, at: int, size: int) -> Any:
    end = at + aligned(size)
    return scratch[at:end], end


def resize_scratch_bytes(max_width: int, out_height: int, out_width: int) -> int:
    """Return the bytes of scratch memory that `resize_crop` needs for crops up to this width."""
    tables = aligned(16 * out_height) + aligned(16 * out_width)
    source, result = aligned(3 * max_width, LANES), aligned(3 * out_width, LANES)
    return int(tables + 2 * LANES * (2 * source + result) + 2 * TILE * TILE)


@native()
def _resize_crop(  # noqa: PLR0913  # numbers instead of arrays
    source_at: int,
    source_rows: int,
    source_columns: int,
    top: int,
    left: int,
    height: int,
    width: int,
    mirrored: int,
    destination_at: int,
    rows: int,
    columns: int,
    scratch_at: int,
    scratch_size: int,
) -> int:
    size = 3 * source_rows * source_columns
    source = memory_at(source_at, size).reshape((source_rows, source_columns, 3))
    destination = memory_at(destination_at, 3 * rows * columns).reshape((rows, columns, 3))
    scratch, is_mirrored = memory_at(scratch_at, scratch_size), mirrored != 0
    linear = height < rows or width < columns
    part, at = _carve(scratch, 0, 16 * rows)
    down = part.view(np.int32)[: 4 * rows].reshape(rows, 4)
    part, at = _carve(scratch, at, 16 * columns)
    across = part.view(np.int32)[: 4 * columns].reshape(columns, 4)
    _fill_table(down, height, linear)
    _fill_table(across, width, linear)
    length = 3 * width
    if length < LANES or (not linear and max(height / rows, width / columns) > _STRONGEST):
        _resize_plainly(source, top, left, down, across, is_mirrored, destination)
        return 0

    stride = aligned(length, LANES)
    part, at = _carve(scratch, at, 2 * LANES * stride)
    blended_rows = part.view(np.uint16)
    part, at = _carve(scratch, at, 2 * LANES * stride)
    transposed = part.view(np.uint16)
    part, at = _carve(scratch, at, 2 * LANES * aligned(3 * columns, LANES))
    blended = part.view(np.uint16)
    corner, at = _carve(scratch, at, 2 * TILE * TILE)

    # Sums hold scale x 2**bits x grey level, with fewer bits the more pixels are summed: 128 to 256
    # steps per grey level. The first pass ends with the bits that the second starts from, and the
    # second ends with 7. Both round down, by half a step on average, which `half` corrects.
    tall, wide = (1.0, 1.0) if linear else (height / rows, width / columns)
    shift, bits = _fraction_bits(8, tall), _fraction_bits(7, wide)
    norm_down = min(65535, int(65536 * 2.0**bits / (tall * 2.0**shift) + 0.5))
    norm_across = min(65535, int(65536 * 128 / (wide * 2.0**bits) + 0.5))
    half = 64 + (1 + (1 << (7 - bits))) // 2

    pixels, pitch = source.reshape(source.size), 3 * source.shape[1]
    for row in range(0, rows, LANES):
        block = down[row : min(row + LANES, rows)]
        origin = pitch * top + 3 * left
        _blend_rows(pixels, origin, pitch, length, block, shift, norm_down, blended_rows)
        for column in range(0, length, TILE):
            for line in range(0, LANES, TILE):
                spot = LANES * column + line
                transpose(blended_rows, stride * line + column, stride, transposed, spot, LANES)
        _blend_columns(transposed, across, norm_across, half, is_mirrored, blended)
        _write_rows(blended, destination, row, corner)
    return 0


@_jit
def resize_crop(
    source: Any,
    top: int,
    left: int,
    height: int,
    width: int,
    mirrored: bool,
    destination: Any,
    scratch: Any,
) -> None:
    """Resize a crop like `resize_area`, without checks and without allocation.

    `source` and `destination` are C-contiguous uint8 `(H, W, 3)` and do not overlap. `scratch` has
    `resize_scratch_bytes` bytes, aligned to 64 bytes, that no other thread uses.
    """
    _resize_crop(
        source.ctypes.data,
        source.shape[0],
        source.shape[1],
        top,
        left,
        height,
        width,
        mirrored,
        destination.ctypes.data,
        destination.shape[0],
        destination.shape[1],
        scratch.ctypes.data,
        scratch.size,
    )


def resize_area(
    image: ArrayLike,
    size: tuple[int, int],
    box: tuple[int, int, int, int] | None = None,
    mirrored: bool = False,
) -> NDArray[np.uint8]:
    """Crop an image and resize the crop, within one grey level of OpenCV's INTER_AREA.

    If neither axis grows, each pixel of the result is the mean of the source over the pixel's area.
    If one grows, both axes are interpolated linearly: destination d lies between the source pixels
    `s = floor(d scale)` and s + 1, at the fraction `frac(max(0, d + 1 - (s + 1) / scale))`.

    Args:
        image: uint8 `(H, W, 3)`.
        size: height and width of the result.
        box: top, left, height and width of the crop. None takes the whole image.
        mirrored: flip the result horizontally.

    Returns:
        uint8 `(height, width, 3)`.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise TypeError(f"`image` must be uint8; got dtype {pixels.dtype}.")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"`image` must have shape (H, W, 3) and pixels; got {pixels.shape}.")
    most_rows, most_columns, _ = pixels.shape
    rows, columns = check_ints("size", size, 2, at_least=1)
    box = (0, 0, most_rows, most_columns) if box is None else box
    top, left, height, width = check_ints("box", box, 4)
    bottom, right = top + height, left + width
    if not (0 <= top < bottom <= most_rows and 0 <= left < right <= most_columns):
        raise ValueError(
            f"`box` must be (top, left, height, width) inside {most_rows} x {most_columns} pixels; "
            f"got {box}."
        )
    result = np.empty((rows, columns, 3), dtype=np.uint8)
    needed = resize_scratch_bytes(width, rows, columns)
    scratch = np.empty(needed + ALIGNMENT, dtype=np.uint8)
    start = -scratch.ctypes.data % ALIGNMENT
    scratch = scratch[start : start + needed]
    # Read-only, as images from Pillow are, so that one variant is compiled for all.
    pixels = np.ascontiguousarray(pixels).view()
    pixels.flags.writeable = False
    resize_crop(pixels, top, left, height, width, bool(mirrored), result, scratch)
    return result
