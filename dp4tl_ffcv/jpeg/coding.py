"""The header of a JPEG as compiled code needs it: size, sampling, Huffman tables (T.81, annex B).

`read_coding` accepts the JPEGs that an MCU index can describe: Huffman-coded and sequential, with
8-bit samples, one interleaved scan of three components in 4:4:4, 4:2:2 or 4:2:0, and no restart
intervals.
"""

from typing import Any

import numpy as np

from ..kernels.compiled import compiled, inlined, memory_at, native, numbers_at

# Fields of the int64 array that `read_coding` fills.
FRAME = 0  # position of the height in the frame header; the width follows
SCAN = 1  # first byte of the entropy-coded data
VERTICAL, HORIZONTAL = 2, 3  # sampling factors of the luma component
ROWS, COLUMNS = 4, 5  # MCUs in the image
TABLES = 6  # for Y, Cb and Cr: positions of the DC table and of the AC table in the data
_COMPONENTS = TABLES + 6  # ids of the components
_DEFINED = _COMPONENTS + 3  # positions of the 4 DC and 4 AC tables by number, 0 if not defined
FIELDS = _DEFINED + 8


_LENGTHS = 16  # a Huffman table starts with the number of codes of each length, 1 to 16 bits


@inlined
def _read_frame(data: Any, start: Any, stop: Any, coding: Any) -> Any:
    if stop - start != 15 or data[start] != 8 or data[start + 5] != 3:
        return False
    height = 256 * int(data[start + 1]) + int(data[start + 2])
    width = 256 * int(data[start + 3]) + int(data[start + 4])
    luma, blue, red = np.int64(data[start + 7]), data[start + 10], data[start + 13]
    if height * width == 0 or blue != 0x11 or red != 0x11:
        return False
    if luma != 0x11 and luma != 0x21 and luma != 0x22:
        return False
    coding[FRAME] = start + 1
    coding[HORIZONTAL], coding[VERTICAL] = luma >> 4, luma & 15
    coding[ROWS] = -(-height // (8 * coding[VERTICAL]))
    coding[COLUMNS] = -(-width // (8 * coding[HORIZONTAL]))
    for component in range(3):
        coding[_COMPONENTS + component] = data[start + 6 + 3 * component]
    return True


@inlined
def _read_tables(data: Any, start: Any, stop: Any, coding: Any) -> Any:
    while start < stop:
        kind, number = np.int64(data[start]) >> 4, np.int64(data[start]) & 15
        if kind > 1 or number > 3 or start + 1 + _LENGTHS > stop:
            return False
        count, room = 0, 1
        for length in range(_LENGTHS):
            codes = int(data[start + 1 + length])
            count += codes
            room = 2 * room - codes
            if room < 0:  # more codes than the length has
                return False
        coding[_DEFINED + 4 * kind + number] = start + 1
        start += 1 + _LENGTHS + count
        if count > 256 or start > stop:
            return False
    return True


@inlined
def _read_scan(data: Any, start: Any, stop: Any, coding: Any) -> Any:
    if stop - start != 10 or data[start] != 3:
        return False
    for component in range(3):
        if data[start + 1 + 2 * component] != coding[_COMPONENTS + component]:
            return False
        tables = np.int64(data[start + 2 + 2 * component])
        for kind in range(2):
            number = tables & 15 if kind else tables >> 4
            if number > 3 or coding[_DEFINED + 4 * kind + number] == 0:
                return False
            coding[TABLES + 2 * component + kind] = coding[_DEFINED + 4 * kind + number]
    return data[start + 7] == 0 and data[start + 8] == 63 and data[start + 9] == 0


@native()
def _read_coding(data_at: Any, data_size: Any, coding_at: Any) -> Any:
    data, coding = memory_at(data_at, data_size), numbers_at(coding_at, FIELDS)
    coding[:] = 0
    if data.size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return 0
    position = 2
    while position + 4 <= data.size and data[position] == 0xFF:
        marker = data[position + 1]
        start = position + 4
        position += 2 + 256 * int(data[position + 2]) + int(data[position + 3])
        if position < start or position > data.size:
            return 0
        if marker == 0xDA:
            coding[SCAN] = position
            return int(coding[FRAME] > 0 and _read_scan(data, start, position, coding))
        if marker == 0xC0 or marker == 0xC1:  # baseline and extended sequential frames
            if coding[FRAME] > 0 or not _read_frame(data, start, position, coding):
                return 0
        elif marker == 0xC4:
            if not _read_tables(data, start, position, coding):
                return 0
        elif not (marker == 0xDB or 0xE0 <= marker < 0xF0 or marker == 0xFE):
            return 0  # another frame type, restarts, or something libjpeg may read differently
    return 0


@compiled()
def read_coding(data: Any, coding: Any) -> Any:
    """Fill `coding`, int64 `(FIELDS,)`, and return whether an index can describe the JPEG."""
    return bool(_read_coding(data.ctypes.data, data.size, coding.ctypes.data) != 0)


@inlined
def size_in(data: Any, coding: Any) -> Any:
    """Return the height and width in the frame header."""
    frame = coding[FRAME]
    height = 256 * np.int64(data[frame]) + np.int64(data[frame + 1])
    return height, 256 * np.int64(data[frame + 2]) + np.int64(data[frame + 3])
