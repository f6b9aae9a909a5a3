"""Find where each MCU of a JPEG starts, without decoding it to pixels.

An MCU (minimum coded unit) is the smallest rectangle that holds whole blocks of all components: 16
x 16 pixels in 4:2:0. A decoder can start at any MCU if it knows the position of the first bit and
the DC predictor of each component (T.81, F.2).
"""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled, inlined, memory_at, native, numbers_at
from .coding import COLUMNS, FIELDS, HORIZONTAL, ROWS, SCAN, TABLES, VERTICAL

_PEEK = 10  # bits of the lookup tables; longer codes are rare
_SIZE = 1 << _PEEK
_LENGTHS = 16
LOOKUPS = 6 * _SIZE  # int16 values of the lookup tables
_MOST_DC_BITS = 11  # of a difference of DC coefficients (T.81, table F.1)
_DC_LIMIT = 1 << 11  # DC coefficients of 8-bit samples lie within
_POSITIVE = (1 << 63) - 1
_DAMAGED = 1 << 32  # instead of a DC coefficient
_END_OF_BLOCK = 64  # as an advance, beyond all 64 coefficients


@inlined
def _fill_lookup(data: Any, table: Any, is_ac: bool, lookup: Any) -> None:
    """Fill the lookup table of a Huffman table: 0 for longer codes and for no code.

    Other entries are, for AC, 256 times the coefficients to advance plus the bits of code and
    value; for DC, 256 times the bits of the value plus the bits of the code.
    """
    lookup[:] = 0
    code, at = 0, table + _LENGTHS
    for length in range(1, _PEEK + 1):
        for _ in range(data[table + length - 1]):
            symbol = np.int64(data[at])
            entry = (
                _ac_entry(symbol, length)
                if is_ac
                else 256 * (symbol if symbol < 15 else 15) + length
            )
            first = code << (_PEEK - length)
            for place in range(first, first + (1 << (_PEEK - length))):
                lookup[place] = entry
            code += 1
            at += 1
        code *= 2


@inlined
def _ac_entry(symbol: Any, length: Any) -> Any:
    """Return 256 times the coefficients to advance plus the bits of a code and its value."""
    size, run = symbol & 15, symbol >> 4
    advance = _END_OF_BLOCK if size == 0 and run != 15 else run + 1
    return 256 * advance + length + size


@compiled()
def _long_entry(data: Any, table: Any, bits: Any) -> Any:
    symbol, length = _long_symbol(data, table, bits)
    return _ac_entry(symbol, length) if length > 0 else 0


@compiled()
def _long_symbol(data: Any, table: Any, bits: Any) -> Any:
    """Return the symbol whose code begins the 16 `bits`, and the length of the code or 0."""
    first, at = 0, table + _LENGTHS
    for length in range(1, _LENGTHS + 1):
        count = int(data[table + length - 1])
        offset = (bits >> (_LENGTHS - length)) - first
        if offset < count:
            return int(data[at + offset]), length
        first = 2 * (first + count)
        at += count
    return 0, 0


@inlined
def _refill(data: Any, position: Any, buffer: Any, bits: Any, missing: Any) -> Any:
    """Add 32 bits to a buffer of at most 32, whose first bit is the highest.

    Zeros stand for bits after a marker, and are counted in `missing`.
    """
    if position + 4 <= data.size:
        word = (
            (np.int64(data[position]) << 24)
            | (np.int64(data[position + 1]) << 16)
            | (np.int64(data[position + 2]) << 8)
            | np.int64(data[position + 3])
        )
        if ((~word - 0x01010101) & word & 0x80808080) == 0:  # no byte is 255
            return position + 4, buffer | (word << (32 - bits)), bits + 32, missing
    for _ in range(4):
        byte = np.int64(0)
        is_byte = position < data.size and data[position] != 0xFF
        if is_byte:
            byte = np.int64(data[position])
            position += 1
        elif position + 1 < data.size and data[position + 1] == 0:
            byte = np.int64(0xFF)
            position += 2
        else:
            missing += 8
        buffer |= byte << (56 - bits)
        bits += 8
    return position, buffer, bits, missing


@compiled()
def _position_of(data: Any, position: Any, bits: Any) -> Any:
    """Return the position in bits of the data that lies `bits` coded bits before `position`."""
    for _ in range((bits + 7) // 8):
        position -= 2 if data[position - 1] == 0 and data[position - 2] == 0xFF else 1
    return 8 * position + (-bits) % 8


@inlined
def _skip_block(
    data: Any,
    tables: Any,
    lookups: Any,
    predictor: Any,
    position: Any,
    buffer: Any,
    bits: Any,
    missing: Any,
) -> Any:
    """Skip a block; return its DC coefficient and the bits that follow, or `_DAMAGED`."""
    if bits <= 32:
        position, buffer, bits, missing = _refill(data, position, buffer, bits, missing)
    entry = np.int64(lookups[0, (buffer >> (64 - _PEEK)) & (_SIZE - 1)])
    size, length = entry >> 8, entry & 255
    if entry == 0:
        size, length = _long_symbol(data, tables[0], (buffer >> 48) & 0xFFFF)
    if length == 0 or size > _MOST_DC_BITS:
        return _DAMAGED, position, buffer, bits, missing
    if size > 0:
        value = ((buffer << length) >> 1 & _POSITIVE) >> (63 - size)
        predictor += value if value >> (size - 1) else value - (1 << size) + 1
    buffer <<= length + size
    bits -= length + size
    coefficient = np.int64(1)
    while coefficient < 64:
        if bits <= 32:
            position, buffer, bits, missing = _refill(data, position, buffer, bits, missing)
        entry = np.int64(lookups[1, (buffer >> (64 - _PEEK)) & (_SIZE - 1)])
        if entry == 0:
            entry = _long_entry(data, tables[1], (buffer >> 48) & 0xFFFF)
            if entry == 0:
                return _DAMAGED, position, buffer, bits, missing
        coefficient += entry >> 8
        buffer <<= entry & 255
        bits -= entry & 255
    # The end of a block adds 64 to at most 63. A run must not lead beyond 63.
    is_whole = coefficient <= 64 or entry >> 8 == _END_OF_BLOCK
    if not is_whole or not -_DC_LIMIT <= predictor < _DC_LIMIT:
        return _DAMAGED, position, buffer, bits, missing
    return predictor, position, buffer, bits, missing


@native()
def _scan_mcus(
    data_at: Any,
    data_size: Any,
    coding_at: Any,
    lookups_at: Any,
    positions_at: Any,
    predictors_at: Any,
) -> Any:
    data, coding = memory_at(data_at, data_size), numbers_at(coding_at, FIELDS)
    count = coding[ROWS] * coding[COLUMNS]
    lookups = memory_at(lookups_at, 2 * LOOKUPS).view(np.int16).reshape((3, 2, _SIZE))
    positions = numbers_at(positions_at, count + 1)
    predictors = memory_at(predictors_at, 6 * (count + 1)).view(np.int16).reshape((count + 1, 3))
    for table in range(6):
        _fill_lookup(data, coding[TABLES + table], table % 2 == 1, lookups[table // 2, table % 2])
    position, buffer, bits, missing = coding[SCAN], np.int64(0), np.int64(0), np.int64(0)
    luma_blocks = coding[VERTICAL] * coding[HORIZONTAL]
    predictors[0, 0] = predictors[0, 1] = predictors[0, 2] = 0
    for mcu in range(count):
        positions[mcu] = _position_of(data, position, bits - missing)
        for component in range(3):
            tables = coding[TABLES + 2 * component : TABLES + 2 * component + 2]
            predictor = np.int64(predictors[mcu, component])
            for _ in range(luma_blocks if component == 0 else 1):
                predictor, position, buffer, bits, missing = _skip_block(
                    data, tables, lookups[component], predictor, position, buffer, bits, missing
                )
                if predictor == _DAMAGED:
                    return 0
            predictors[mcu + 1, component] = predictor
        if missing > bits:
            return 0
    positions[count] = _position_of(data, position, bits - missing)
    # Only padding may lie between the last MCU and the end marker.
    end = (positions[count] + 7) // 8
    if positions[count] % 8 > 0 and data[end - 1] == 0xFF:
        end += 1
    return int(end + 2 <= data.size and data[end] == 0xFF and data[end + 1] == 0xD9)


@compiled()
def scan_mcus(data: Any, coding: Any, lookups: Any, positions: Any, predictors: Any) -> Any:
    """Find the start of each MCU of a whole, undamaged JPEG; return False for another one.

    Args:
        data: the JPEG, contiguous uint8.
        coding: what `read_coding` found in it.
        lookups: scratch memory, int16 `(6, 1024)`.
        positions: result, int64 `(M + 1,)` for M MCUs: the first bit of each MCU in the data, 8
            times the byte plus the bit, and the end of the last MCU.
        predictors: result, int16 `(M + 1, 3)`: the DC predictors of Y, Cb and Cr before each MCU.
    """
    found = _scan_mcus(
        data.ctypes.data,
        data.size,
        coding.ctypes.data,
        lookups.ctypes.data,
        positions.ctypes.data,
        predictors.ctypes.data,
    )
    return bool(found != 0)
