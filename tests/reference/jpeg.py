"""Twin of `dp4tl_ffcv.jpeg.mcu_scan`: where the MCUs of a JPEG start, from ITU-T T.81 alone."""

from dataclasses import dataclass, field

Codes = dict[tuple[int, int], int]

_FRAMES = (0xC0, 0xC1)
_PLAIN = (0xC4, 0xDB, 0xFE, *range(0xE0, 0xF0))  # tables, comments and application data


class NoIndexError(ValueError):
    """The data is damaged, or not sequential, Huffman-coded, in one scan and without restarts."""


@dataclass
class Header:
    """Tables, size and components, as read from the segments before the coded data."""

    tables: dict[int, Codes] = field(default_factory=dict)  # by Tc and Th: 16 Tc + Th
    size: tuple[int, int] = (0, 0)
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)  # by component: H, V
    scan: list[tuple[int, int, int]] = field(default_factory=list)  # component, DC and AC table
    start: int = 0  # of the coded data


def mcu_starts(data: bytes) -> tuple[list[int], list[list[int]]]:
    """Return the first bit of every MCU and the end of the last, and the DC predictors there.

    Bits are numbered from the start of the data, 8 per byte, the highest of a byte first. A stuffed
    zero byte has no bits of its own: after all 8 bits of a byte 255, the next byte is two further.

    Raises:
        NoIndexError: the data has no index.
    """
    header = read_header(data)
    most = [max(factors[axis] for factors in header.sampling.values()) for axis in (0, 1)]
    height, width = header.size
    count = -(-height // (8 * most[1])) * -(-width // (8 * most[0]))
    reader = _Reader(data, 8 * header.start)
    predictors = [0] * len(header.scan)
    positions, before = [reader.position], [predictors[:]]
    for _ in range(count):
        for number, (component, dc, ac) in enumerate(header.scan):
            across, down = header.sampling[component]
            for _ in range(across * down):
                predictors[number] += reader.dc_difference(header.tables[dc])
                if not -2048 <= predictors[number] < 2048:
                    raise NoIndexError("a DC coefficient beyond those of 8-bit samples")
                reader.skip_ac(header.tables[16 + ac])
        positions.append(reader.position)
        before.append(predictors[:])
    end = reader.end
    if data[end : end + 2] != b"\xff\xd9":
        raise NoIndexError("the image does not end after its last MCU")
    return positions, before


def read_header(data: bytes) -> Header:
    """Read the segments up to the first scan (annex B.2)."""
    header, position = Header(), 2
    if data[:2] != b"\xff\xd8":
        raise NoIndexError("not a JPEG")
    while header.start == 0:
        if len(data) < position + 4 or data[position] != 0xFF:
            raise NoIndexError("no marker")
        marker, stop = data[position + 1], position + 2 + _word(data, position + 2)
        segment = data[position + 4 : stop]
        if stop > len(data) or stop < position + 4:
            raise NoIndexError("a segment does not fit")
        if marker in _FRAMES:
            _read_frame(segment, header)
        elif marker == 0xC4:
            _read_tables(segment, header)
        elif marker == 0xDA:
            _read_scan(segment, header)
            header.start = stop
        elif marker not in _PLAIN:
            raise NoIndexError("another coding")
        position = stop
    return header


def _word(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "big")


def _read_frame(segment: bytes, header: Header) -> None:
    if header.sampling or len(segment) < 6 or segment[0] != 8:
        raise NoIndexError("a second frame, or not 8 bits per sample")
    header.size = _word(segment, 1), _word(segment, 3)
    components = [segment[at : at + 3] for at in range(6, len(segment), 3)]
    if len(components) != segment[5] or len(segment) != 6 + 3 * segment[5]:
        raise NoIndexError("the frame has another length")
    header.sampling = {number: (by >> 4, by & 15) for number, by, _ in components}
    factors = list(header.sampling.values())
    if factors[1:] != [(1, 1)] * 2 or factors[0] not in ((1, 1), (2, 1), (2, 2)):
        raise NoIndexError("another sampling")
    if 0 in header.size:
        raise NoIndexError("no pixels")


def _read_tables(segment: bytes, header: Header) -> None:
    """Read Huffman tables (annex B.2.4.2) and generate their codes (annex C)."""
    while segment:
        counts, total = segment[1:17], sum(segment[1:17])
        symbols = segment[17 : 17 + total]
        if len(counts) != 16 or len(symbols) != total or total > 256 or segment[0] & 0xEC:
            raise NoIndexError("a Huffman table does not fit")
        codes: Codes = {}
        code, at = 0, 0
        for length, of_length in enumerate(counts, 1):
            for _ in range(of_length):
                codes[length, code] = symbols[at]
                code, at = code + 1, at + 1
            if code > 1 << length:
                raise NoIndexError("more codes than the length has")
            code *= 2
        header.tables[segment[0]] = codes
        segment = segment[17 + total :]


def _read_scan(segment: bytes, header: Header) -> None:
    count = segment[0] if segment else 0
    if len(segment) != 4 + 2 * count or segment[-3:] != bytes((0, 63, 0)):
        raise NoIndexError("a progressive scan")
    pairs = [segment[at : at + 2] for at in range(1, 1 + 2 * count, 2)]
    header.scan = [(number, tables >> 4, tables & 15) for number, tables in pairs]
    if [number for number, _, _ in header.scan] != list(header.sampling):
        raise NoIndexError("not all components in one scan")
    if any(dc not in header.tables or 16 + ac not in header.tables for _, dc, ac in header.scan):
        raise NoIndexError("a missing table")


class _Reader:
    """Reads the bits of coded data (annex F.2.2)."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    @property
    def end(self) -> int:
        """The first byte after the coded data, without what is left of a byte."""
        byte, bit = divmod(self.position, 8)
        if bit == 0:
            return byte
        return byte + (2 if self.data[byte] == 0xFF else 1)

    def bit(self) -> int:
        """NEXTBIT."""
        at, place = divmod(self.position, 8)
        if at >= len(self.data) or (self.data[at] == 0xFF and self.data[at + 1 : at + 2] != b"\0"):
            raise NoIndexError("the coded data ends early")
        self.position += 1
        if place == 7 and self.data[at] == 0xFF:
            self.position += 8
        return self.data[at] >> (7 - place) & 1

    def bits(self, count: int) -> int:
        """RECEIVE."""
        value = 0
        for _ in range(count):
            value = 2 * value + self.bit()
        return value

    def symbol(self, codes: Codes) -> int:
        """DECODE."""
        code = 0
        for length in range(1, 17):
            code = 2 * code + self.bit()
            if (length, code) in codes:
                return codes[length, code]
        raise NoIndexError("a code that the table lacks")

    def dc_difference(self, codes: Codes) -> int:
        """DIFF, with EXTEND."""
        size = self.symbol(codes)
        if size > 11:
            raise NoIndexError("a DC difference of more than 11 bits")
        value = self.bits(size)
        return value if size == 0 or value >> (size - 1) else value - (1 << size) + 1

    def skip_ac(self, codes: Codes) -> None:
        """Decode_AC_coefficients, without their values."""
        place = 1
        while place < 64:
            run, size = divmod(self.symbol(codes), 16)
            if size == 0 and run != 15:
                return
            place += run + 1
            self.bits(size)
        if place > 64:
            raise NoIndexError("a run of zeros beyond the block")
