"""Cut a rectangle of MCUs out of a JPEG, as a small JPEG that decodes to the same blocks.

The excerpt states the size of the rectangle. Each row of MCUs starts with lead-in MCUs, followed by
the coded data of the rectangle as it is. The lead-in brings the DC predictors to their values at
the first MCU of the row, and fills the bits before it in its first byte. It decodes to pixels that
nobody looks at.
"""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled, copy_memory, inlined, memory_at, native, numbers_at
from ..kernels.ycc import TOO_NARROW
from .coding import COLUMNS, FIELDS, FRAME, HORIZONTAL, ROWS, SCAN, TABLES, VERTICAL
from .mcu_index import read_entries, step_of

MOST_LEAD_IN = 4  # MCUs per row
LEAD_IN_PIXELS = 16 * MOST_LEAD_IN
# libjpeg-turbo decodes MCUs quickly only while this many bytes follow in its buffer.
PADDING = 512 * 6
CODES = 3 * 26 + 3 * 8 + 3 + 4 + 3  # int64 values of scratch memory for `write_excerpt`


_SIZES = 12  # of differences of DC coefficients: 0 to 11 bits
_LEAD_IN_BYTES = 256  # more than a lead-in MCU takes
# The scratch memory: codes and their lengths for each component, then bits that fill a byte.
_DC, _END, _FILL = 0, 2 * _SIZES, 3 * 26
_AT, _BUFFER, _BITS = CODES - 10, CODES - 9, CODES - 8  # next byte, bits not yet written, number
_ZEROS = CODES - 7  # an entry before the first one
_LEFT = CODES - 3  # what is left of the DC differences


@native()
def _put_bits(out_at: Any, codes_at: Any, value: Any, length: Any) -> Any:
    out, codes = memory_at(out_at, 0), numbers_at(codes_at, CODES)
    buffer, bits, at = codes[_BUFFER] << length | value, codes[_BITS] + length, codes[_AT]
    while bits >= 8:
        bits -= 8
        byte = buffer >> bits & 0xFF
        out[at] = byte
        at += 1
        if byte == 0xFF:
            out[at] = 0
            at += 1
    codes[_AT], codes[_BUFFER], codes[_BITS] = at, buffer & ((1 << bits) - 1), bits
    return 0


@inlined
def _put(out: Any, codes: Any, value: Any, length: Any) -> None:
    """Write the low `length` bits of a value, with a zero byte after each 255."""
    _put_bits(out.ctypes.data, codes.ctypes.data, value, length)


@inlined
def _copy(data: Any, start: Any, stop: Any, out: Any, codes: Any) -> None:
    copy_memory(out.ctypes.data + codes[_AT], data.ctypes.data + start, stop - start)
    codes[_AT] += stop - start


@inlined
def _read_codes(data: Any, coding: Any, codes: Any) -> None:
    """Look up the codes of the lead-in: DC differences, ends of blocks, and fillers."""
    codes[:] = 0
    for table in range(6):
        component, at, code = table // 2, coding[TABLES + table] + 16, np.int64(0)
        for length in range(1, 17):
            for _ in range(data[coding[TABLES + table] + length - 1]):
                symbol = np.int64(data[at])
                place, bits, value = np.int64(-1), np.int64(length), code
                if table % 2 == 0 and symbol < _SIZES:
                    place = 26 * component + 2 * symbol
                elif table % 2 == 1 and symbol == 0:
                    place = np.int64(26 * component + _END)
                elif table == 5 and 0 < symbol & 15 < 11:
                    # A coefficient of the last block, with zeros as its value.
                    bits, value = length + (symbol & 15), code << (symbol & 15)
                    fill = _FILL + 3 * (bits % 8)
                    if codes[fill + 1] == 0 or codes[fill + 1] > bits:
                        place = np.int64(fill)
                if place >= 0:
                    codes[place], codes[place + 1] = value, bits
                code += 1
                at += 1
            code *= 2


@inlined
def _put_difference(out: Any, codes: Any, component: Any, wanted: Any) -> Any:
    """Write a block's DC difference, as much as possible of `wanted`; return what is left."""
    size, sign = np.int64(0), np.int64(1 if wanted > 0 else -1)
    while wanted * sign >> size:
        size += 1
    value = wanted
    while size > 0 and (size >= _SIZES or codes[26 * component + 2 * size + 1] == 0):
        size -= 1
        value = sign * ((1 << size) - 1)
    _put(out, codes, codes[26 * component + 2 * size], codes[26 * component + 2 * size + 1])
    _put(out, codes, value if value >= 0 else value + (1 << size) - 1, size)
    return wanted - value


@inlined
def _put_fill(out: Any, codes: Any, bits: Any) -> Any:
    """Write coefficients that take `bits` bits modulo 8; return False if no code allows it."""
    if bits == 0:
        return True
    if codes[_FILL + 3 * bits + 1] > 0:
        _put(out, codes, codes[_FILL + 3 * bits], codes[_FILL + 3 * bits + 1])
        return True
    for first in range(1, 8):
        one, two = _FILL + 3 * first, _FILL + 3 * ((bits - first) % 8)
        if codes[one + 1] > 0 and codes[two + 1] > 0:
            _put(out, codes, codes[one], codes[one + 1])
            _put(out, codes, codes[two], codes[two + 1])
            return True
    return False


@inlined
def _put_lead_in(
    out: Any, codes: Any, luma_blocks: Any, count: Any, before: Any, entry: Any
) -> Any:
    """Write lead-in MCUs that lead from the predictors `before` to the entry; False if too few."""
    left = codes[_LEFT : _LEFT + 3]
    for component in range(3):
        left[component] = entry[1 + component] - before[1 + component]
    for number in range(count):
        for component in range(3):
            end = 26 * component + _END
            for _ in range(luma_blocks if component == 0 else 1):
                left[component] = _put_difference(out, codes, component, left[component])
                if component == 2 and number == count - 1:
                    missing = (entry[0] - codes[_BITS] - codes[end + 1]) % 8
                    if not _put_fill(out, codes, missing):
                        return False
                _put(out, codes, codes[end], codes[end + 1])
    return left[0] == 0 and left[1] == 0 and left[2] == 0


@inlined
def _put_header(data: Any, coding: Any, height: Any, width: Any, out: Any, codes: Any) -> Any:
    """Write the header of an excerpt of this size, without comments and metadata.

    Returns False if there is no room.
    """
    _copy(data, 0, 2, out, codes)
    position, frame = np.int64(2), np.int64(0)
    while position < coding[SCAN]:
        marker = data[position + 1]
        stop = position + 2 + 256 * np.int64(data[position + 2]) + np.int64(data[position + 3])
        is_metadata = 0xE1 <= marker < 0xEE or marker > 0xEE
        if not is_metadata:
            if codes[_AT] + stop - position + PADDING > out.size:
                return False
            if position + 5 == coding[FRAME]:
                frame = codes[_AT] + 5
            _copy(data, position, stop, out, codes)
        position = stop
    out[frame], out[frame + 1] = height // 256, height % 256
    out[frame + 2], out[frame + 3] = width // 256, width % 256
    return True


@native()
def _write_excerpt(
    data_at: Any,
    data_size: Any,
    coding_at: Any,
    entries_at: Any,
    rows: Any,
    columns: Any,
    lead_in: Any,
    codes_at: Any,
    out_at: Any,
    out_size: Any,
) -> Any:
    data, out = memory_at(data_at, data_size), memory_at(out_at, out_size)
    coding, codes = numbers_at(coding_at, FIELDS), numbers_at(codes_at, CODES)
    entries = numbers_at(entries_at, (rows, 2, 4))
    _read_codes(data, coding, codes)
    luma_blocks = coding[VERTICAL] * coding[HORIZONTAL]
    height = 8 * coding[VERTICAL] * rows
    width = 8 * coding[HORIZONTAL] * (columns + lead_in)
    has_codes = codes[1] > 0 and codes[27] > 0 and codes[53] > 0
    has_ends = codes[_END + 1] > 0 and codes[26 + _END + 1] > 0 and codes[52 + _END + 1] > 0
    if not has_codes or not has_ends or width > 0xFFFF or out.size < PADDING:
        return 0
    if not _put_header(data, coding, height, width, out, codes):
        return 0
    before = codes[_ZEROS : _ZEROS + 4]
    for row in range(rows):
        start, stop = entries[row, 0], entries[row, 1]
        first, last = start[0] >> 3, stop[0] >> 3
        room = out.size - codes[_AT] - lead_in * _LEAD_IN_BYTES - PADDING - 16
        if first < coding[SCAN] or last <= first or last >= data.size or last - first > room:
            return 0
        if not _put_lead_in(out, codes, luma_blocks, lead_in, before, start):
            return 0
        bits = 8 - (start[0] & 7)
        if bits < 8:
            _put(out, codes, np.int64(data[first]) & ((1 << bits) - 1), bits)
            first += 2 if data[first] == 0xFF else 1
        if first < last:
            _copy(data, first, last, out, codes)
        codes[_BITS] = stop[0] & 7
        codes[_BUFFER] = np.int64(data[last]) >> (8 - codes[_BITS])
        before = stop
    if codes[_BITS] > 0:
        bits = 8 - codes[_BITS]
        _put(out, codes, (1 << bits) - 1, bits)
    at = codes[_AT]
    out[at], out[at + 1] = 0xFF, 0xD9
    return at + 2 + PADDING


@compiled()
def write_excerpt(
    data: Any,
    coding: Any,
    entries: Any,
    rows: Any,
    columns: Any,
    lead_in: Any,
    codes: Any,
    out: Any,
) -> Any:
    """Write an excerpt to `out`, and return its bytes with the padding; 0 if it cannot be written.

    Args:
        data: the JPEG, contiguous uint8.
        coding: what `read_coding` found in it.
        entries: the entries at the start and the end of each row, int64 `(rows, 2, 4)`.
        rows: rows of MCUs of the rectangle.
        columns: MCUs in a row of the rectangle.
        lead_in: MCUs before each row, 1 to `MOST_LEAD_IN`. More are needed if the Huffman tables
            lack the codes of large differences.
        codes: scratch memory, int64 `(CODES,)`.
        out: result, contiguous uint8.
    """
    return int(
        _write_excerpt(
            data.ctypes.data,
            data.size,
            coding.ctypes.data,
            entries.ctypes.data,
            rows,
            columns,
            lead_in,
            codes.ctypes.data,
            out.ctypes.data,
            out.size,
        )
    )


@inlined
def cut_excerpt(
    data: Any, coding: Any, index: Any, width: Any, box: Any, scratch: Any, out: Any
) -> Any:
    """Write the excerpt of a JPEG that holds a box to `out`.

    `coding` is what `read_coding` found in the data, and `box` is top, left, height and width in
    pixels. Returns the bytes of the excerpt, 0 if there is none; then, in MCUs, the first row, the
    first column, the rows, the columns with the lead-in, and the lead-in.
    """
    nothing = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    step = step_of(index)
    vertical, horizontal = coding[VERTICAL], coding[HORIZONTAL]
    rows, columns = coding[ROWS], coding[COLUMNS]
    # An upsampled pixel also depends on its neighbours.
    above, beside = vertical - 1, 2 * (horizontal - 1)
    first_row = max(box[0] - above, 0) // (8 * vertical)
    end_row = min((box[0] + box[2] - 1 + above) // (8 * vertical) + 1, rows)
    first = max(box[1] - beside, 0) // (8 * horizontal) // step * step
    end = min((box[1] + box[3] - 1 + beside) // (8 * horizontal) // step * step + step, columns)
    if first > 0 and -(-width // horizontal) - 8 * first <= TOO_NARROW:
        first -= step
    per_row = -(-columns // step)
    count = end_row * per_row + 1
    if scratch.size < 32 * (count + 2 * rows) + 8 * CODES:
        return nothing
    codes_at = scratch.ctypes.data
    codes = numbers_at(codes_at, CODES)
    entries = numbers_at(codes_at + 8 * CODES, (count, 4))
    if not read_entries(index, 8 * coding[SCAN], count, entries):
        return nothing
    num_rows, num_columns = end_row - first_row, end - first
    ends = numbers_at(codes_at + 8 * (CODES + 4 * count), (num_rows, 2, 4))
    for row in range(num_rows):
        start = (first_row + row) * per_row
        for column in range(4):
            ends[row, 0, column] = entries[start + first // step, column]
            ends[row, 1, column] = entries[start + -(-end // step), column]
    for lead_in in range(1, MOST_LEAD_IN + 1):
        size = write_excerpt(data, coding, ends, num_rows, num_columns, lead_in, codes, out)
        if size > 0:
            return size, first_row, first, num_rows, num_columns + lead_in, np.int64(lead_in)
    return nothing
