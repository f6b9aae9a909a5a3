"""The index of a JPEG: where a decoder can enter its entropy-coded data.

An index has an entry for every k-th MCU of each row of MCUs, and one for the end of the data. An
entry holds the position of a bit in the JPEG and the DC predictors of Y, Cb and Cr there. k is the
smallest step with which the index takes at most `LARGEST_SHARE` of the JPEG.

Layout: a header of `HEADER` bytes, then a stream of bits, the highest of each byte first. Entries
after the first are differences to the previous entry. Position differences minus their minimum, and
predictor differences (0, -1, 1, -2, ... as 0, 1, 2, 3, ...), are Rice codes: the value divided by
`2^r` in unary (ones, then a zero), then its low r bits. r is chosen for each of the four columns
(Rice, "Some practical universal noiseless coding techniques", JPL 79-22, 1979).

An index is valid for one JPEG only, whose length it contains, and a checksum of the JPEG and of
itself.
"""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled, copy_memory, inlined, memory_at, native, numbers_at
from ..kernels.scratch import ALIGNMENT, aligned
from .coding import COLUMNS, ROWS
from .mcu_scan import LOOKUPS, scan_mcus

LARGEST_SHARE = 0.0145  # of the bytes of a JPEG
# The header is an int64, the checksum of the JPEG XOR that of the bytes of the index from
# `_CHECKED` on, and four int32: the bytes of the JPEG, the smallest position difference, the step,
# and r of the four columns in a byte each.
HEADER = 24
_CHECKED = 8
_LENGTH, _LEAST, _STEP, _LOW_BITS = 2, 3, 4, 5

UNKNOWN, NONE = 0, -1  # instead of the bytes of an index: not made yet, or impossible


_COLUMNS = 4  # of an entry: position, and predictors of Y, Cb and Cr
_MOST_LOW_BITS = 24
_CODES_BYTES = 16  # of an entry: many more than an index has room for
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with irregular bits


@compiled()
def _mixed(value: Any) -> Any:
    """Spread each bit of a uint64 to all bits, as MurmurHash3's final mixing does."""
    half = np.uint64(33)
    value = (value ^ (value >> half)) * _FACTOR
    # After a single multiplication, a change of the highest bits would be cancelled by another.
    value = (value ^ (value >> half)) * _FACTOR
    return value ^ (value >> half)


@compiled()
def checksum(data: Any) -> Any:
    """Return a 64-bit checksum of contiguous uint8 that depends on every byte and on their order.

    Sums of little-endian words and running sums of these sums, as in Fletcher's checksum. Sums are
    rotated before a word is added, so that the highest bits of words count as much as others.
    """
    whole = data.size // 32 * 4
    words = data[: 8 * whole].view(np.uint64)
    left, right = np.uint64(23), np.uint64(41)
    a = b = c = d = np.uint64(data.size)
    e = f = g = h = np.uint64(0)
    for at in range(0, whole, 4):  # four lanes, so that additions do not wait for each other
        a, b = (a << left | a >> right) + words[at], (b << left | b >> right) + words[at + 1]
        c, d = (c << left | c >> right) + words[at + 2], (d << left | d >> right) + words[at + 3]
        e, f, g, h = e + a, f + b, g + c, h + d
    result = np.uint64(0)
    for each in (a, b, c, d, e, f, g, h):
        result = _mixed(result ^ each)
    for at in range(8 * whole, data.size):
        result = _mixed(result ^ np.uint64(data[at]))
    return np.int64(result)


@inlined
def num_entries(rows: Any, columns: Any, step: Any) -> Any:
    """Return the entries of the index of `rows` by `columns` MCUs: one per `step`, and the end."""
    return rows * -(-columns // step) + 1


@compiled(inline="always")
def _zigzag(value: Any) -> Any:
    return 2 * value if value >= 0 else -2 * value - 1


@inlined
def _take_differences(
    rows: Any, columns: Any, step: Any, positions: Any, predictors: Any, values: Any
) -> Any:
    """Write the differences between entries to `values`, and return their number."""
    count, last = 0, 0
    per_row = -(-columns // step)
    for entry in range(1, num_entries(rows, columns, step)):
        mcu = entry // per_row * columns + entry % per_row * step
        values[count, 0] = positions[mcu] - positions[last]
        for component in range(3):
            difference = np.int64(predictors[mcu, component]) - predictors[last, component]
            values[count, 1 + component] = _zigzag(difference)
        last = mcu
        count += 1
    least = values[0, 0]
    for row in range(count):
        least = min(least, values[row, 0])
    for row in range(count):
        values[row, 0] -= least
    return least


@inlined
def _low_bits(values: Any, column: Any, count: Any) -> Any:
    """Return r of a column: the number of bits below its mean."""
    total, low = 0, 0
    for row in range(count):
        total += values[row, column]
    while count << low < total:
        low += 1
    return max(low - 1, 0)


@inlined
def _write_codes(values: Any, count: Any, low_bits: Any, out: Any) -> Any:
    """Write the Rice codes of `count` rows to `out`, and return their bytes, 0 without room."""
    buffer, bits, at = np.int64(0), np.int64(0), 0
    for row in range(count):
        for column in range(_COLUMNS):
            value, low = values[row, column], np.int64(low_bits[column])
            ones = value >> low
            if at + (bits + ones + low) // 8 + 2 > out.size:
                return 0
            while ones >= 8:
                buffer, ones = buffer << 8 | 0xFF, ones - 8
                out[at] = buffer >> bits & 0xFF
                at += 1
            buffer = (
                (buffer << (ones + 1 + low))
                | ((1 << ones) - 1 << (1 + low))
                | (value & ((1 << low) - 1))
            )
            bits += ones + 1 + low
            while bits >= 8:
                bits -= 8
                out[at] = buffer >> bits & 0xFF
                at += 1
    out[at] = buffer << (8 - bits) & 0xFF
    return at + 1


@inlined
def build_scratch_bytes(rows: Any, columns: Any) -> Any:
    """Return the bytes of scratch memory that `build_index` needs for `rows` by `columns` MCUs."""
    entry = 8 + 8 * _COLUMNS + 2 * (_COLUMNS - 1) + _CODES_BYTES
    return HEADER + 2 * LOOKUPS + (rows * columns + 1) * entry + 4 * ALIGNMENT


@inlined
def build_index(data: Any, coding: Any, scratch: Any, out: Any) -> Any:
    """Write the index of a JPEG to `out`, and return its bytes; 0 if the JPEG cannot have one.

    An index needs a JPEG that `read_coding` accepts, without damage, of enough bytes.

    `data` and `out` are contiguous uint8, `out` at a multiple of 8 bytes; `coding` is what
    `read_coding` found in `data`. `scratch` has the bytes of `build_scratch_bytes`.
    """
    rows, columns = coding[ROWS], coding[COLUMNS]
    count = rows * columns + 1
    if scratch.size < build_scratch_bytes(rows, columns):
        return 0
    positions = numbers_at(scratch.ctypes.data, count)
    at = aligned(8 * count)
    values = numbers_at(scratch.ctypes.data + at, (count, _COLUMNS))
    at += aligned(8 * _COLUMNS * count)
    predictors = scratch[at : at + 6 * count].view(np.int16).reshape((count, 3))
    at += aligned(6 * count)
    lookups = scratch[at : at + 2 * LOOKUPS].view(np.int16).reshape((6, LOOKUPS // 6))
    if not scan_mcus(data, coding, lookups, positions, predictors):
        return 0
    at += aligned(2 * LOOKUPS)
    made = scratch[at:]
    room = min(np.int64(LARGEST_SHARE * data.size), out.size, made.size)
    if room <= HEADER:
        return 0
    numbers = made[:HEADER].view(np.int32)
    low_bits = made[4 * _LOW_BITS : 4 * _LOW_BITS + _COLUMNS]
    for step in range(1, columns + 1):
        if step > 1 and -(-columns // step) == -(-columns // (step - 1)):
            continue  # as many entries as with the last step
        least = _take_differences(rows, columns, step, positions, predictors, values)
        entries = num_entries(rows, columns, step) - 1
        for column in range(_COLUMNS):
            low_bits[column] = _low_bits(values, column, entries)
        size = _write_codes(values, entries, low_bits, made[HEADER:room])
        if size > 0:
            size += HEADER
            numbers[_LENGTH], numbers[_LEAST], numbers[_STEP] = data.size, least, step
            made[:_CHECKED].view(np.int64)[0] = checksum(data) ^ checksum(made[_CHECKED:size])
            # Another thread may read an index that was made for the same image a moment ago. It
            # does not see unfinished bytes, because a copy replaces each byte by the same byte.
            copy_memory(out.ctypes.data, made.ctypes.data, size)
            return size
    return 0


@native()
def _is_index_of(index_at: Any, index_size: Any, data_at: Any, data_size: Any) -> Any:
    if index_size <= HEADER:
        return 0
    index, data = memory_at(index_at, index_size), memory_at(data_at, data_size)
    if index[:HEADER].view(np.int32)[_LENGTH] != data_size:
        return 0
    found = checksum(data) ^ checksum(index[_CHECKED:])
    return int(index[:_CHECKED].view(np.int64)[0] == found)


@compiled()
def is_index_of(index: Any, data: Any) -> Any:
    """Return whether an index was made for the JPEG `data` and is undamaged.

    `index` is contiguous uint8 at a multiple of 8 bytes.
    """
    found = _is_index_of(index.ctypes.data, index.size, data.ctypes.data, data.size)
    return bool(found != 0)


@compiled()
def step_of(index: Any) -> Any:
    """Return the step of an index in MCUs, at least 1."""
    return max(np.int64(index[:HEADER].view(np.int32)[_STEP]), 1)


@inlined
def _read_code(index: Any, low_bits: Any, buffer: Any, bits: Any, at: Any) -> Any:
    """Read a Rice code; return its value, or -1 at the end of the index, and the reader's state."""
    low, ones = np.int64(low_bits), np.int64(0)
    while low <= _MOST_LOW_BITS:
        if bits == 0:
            if at >= index.size:
                break
            buffer, bits, at = np.int64(index[at]), np.int64(8), at + 1
        bits -= 1
        if buffer >> bits & 1 == 0:
            while bits < low and at < index.size:
                buffer, bits, at = buffer << 8 | np.int64(index[at]), bits + 8, at + 1
            if bits < low:
                break
            bits -= low
            return ones << low | (buffer >> bits & ((1 << low) - 1)), buffer, bits, at
        ones += 1
    return np.int64(-1), buffer, bits, at


@compiled()
def read_entries(index: Any, first: Any, count: Any, entries: Any) -> Any:
    """Read the first `count` entries to `entries`, int64 `(count, 4)`; return False on damage.

    `first` is the position of the first entry, the start of the coded data in bits. The columns
    are the position in bits and the DC predictors of Y, Cb and Cr.
    """
    least = np.int64(index[:HEADER].view(np.int32)[_LEAST])
    low_bits = index[4 * _LOW_BITS : 4 * _LOW_BITS + _COLUMNS]
    entries[0, 0], entries[0, 1], entries[0, 2], entries[0, 3] = first, 0, 0, 0
    buffer, bits, at = np.int64(0), np.int64(0), np.int64(HEADER)
    for row in range(1, count):
        for column in range(_COLUMNS):
            value, buffer, bits, at = _read_code(index, low_bits[column], buffer, bits, at)
            if value < 0:
                return False
            if column == 0:
                entries[row, 0] = entries[row - 1, 0] + least + value
            else:
                difference = value >> 1 if value & 1 == 0 else -(value >> 1) - 1
                entries[row, column] = entries[row - 1, column] + difference
    return True
