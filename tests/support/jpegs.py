"""JPEGs of all kinds: samplings, codings, and orders of their segments."""

import os
from collections.abc import Callable
from unittest.mock import patch

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dp4tl_ffcv.jpeg import turbojpeg

from .images import jpeg

Pixels = NDArray[np.uint8]
Segment = tuple[int, bytes]  # the marker's second byte, and what follows the length

_FRAME, _TABLES, _QUANTIZATION, _SCAN = 0xC0, 0xC4, 0xDB, 0xDA


def segments(data: bytes) -> tuple[list[Segment], bytes]:
    """Return the segments of a JPEG up to its first scan, and the bytes after them."""
    found, position = [], 2
    while not found or found[-1][0] != _SCAN:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        found.append((data[position + 1], data[position + 4 : position + 2 + length]))
        position += 2 + length
    return found, data[position:]


def joined(parts: list[Segment], coded: bytes, fill: int = 0) -> bytes:
    """Return the JPEG of these segments, with `fill` fill bytes before each marker."""
    whole = b"\xff\xd8"
    for marker, body in parts:
        whole += b"\xff" * (fill + 1) + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body
    return whole + coded


def of_scans(count: int) -> bytes:
    """Return a valid progressive JPEG of 8 x 8 grey pixels with up to 757 scans."""
    table = bytes([1, *[0] * 15, 0])  # the code 0 for the value 0
    frame = bytes([8, 0, 8, 0, 8, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    first = bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0])
    parts = [(_QUANTIZATION, bytes([0, *[1] * 64])), (0xC2, frame)]
    parts += [(_TABLES, bytes([kind]) + table) for kind in (0x00, 0x10)]
    whole = joined([*parts, (_SCAN, first)], b"\x1f")
    scans = [
        bytes([1, component, 0, place, place, successive])
        for component in (1, 2, 3)
        for place in range(1, 64)
        for successive in (0x03, 0x32, 0x21, 0x10)
    ]
    for scan in scans[: count - 1]:
        whole += joined([(_SCAN, scan)], b"\x7f")[2:]
    return whole + b"\xff\xd9"


def _merged(data: bytes) -> bytes:
    """Put all Huffman tables into one segment, and all quantization tables into another."""
    parts, coded = segments(data)
    merged = {kind: b"".join(b for m, b in parts if m == kind) for kind in (_TABLES, _QUANTIZATION)}
    others = [part for part in parts if part[0] not in merged]
    return joined(others[:-1] + list(merged.items()) + others[-1:], coded)


def _split(data: bytes) -> bytes:
    """Give each table a segment of its own, all of them after the frame, with comments between."""
    parts, coded = segments(data)
    singles: list[Segment] = []
    for kind, body in parts:
        while kind == _TABLES and body:
            size = 17 + sum(body[1:17])
            singles += [(kind, body[:size]), (0xFE, b"a comment")]
            body = body[size:]
        while kind == _QUANTIZATION and body:
            singles, body = [*singles, (kind, body[:65])], body[65:]
    others = [part for part in parts if part[0] not in (_TABLES, _QUANTIZATION)]
    return joined(others[:-1] + singles[::-1] + others[-1:], coded)


def _twice(data: bytes) -> bytes:
    """Define every table twice, first with other codes."""
    parts, coded = segments(data)
    other = [part for part in segments(jpeg(_SPOTS, optimize=True))[0] if part[0] == _TABLES]
    return joined(parts[:1] + other + parts[1:], coded)


def _extended(data: bytes) -> bytes:
    """Declare an extended sequential frame."""
    parts, coded = segments(data)
    return joined([(0xC1 if kind == _FRAME else kind, body) for kind, body in parts], coded)


def _without_jfif(data: bytes) -> bytes:
    parts, coded = segments(data)
    return joined([part for part in parts if part[0] != 0xE0], coded)


def _with_adobe(data: bytes) -> bytes:
    """State by Adobe's segment that the components are YCbCr."""
    parts, coded = segments(_without_jfif(data))
    return joined([(0xEE, b"Adobe\0\x64\0\0\0\0\1"), *parts], coded)


def _filled(data: bytes) -> bytes:
    parts, coded = segments(data)
    return joined(parts, coded, fill=3)


def _trailing(data: bytes) -> bytes:
    return data + b"after the end" + bytes(99)


def _arithmetic(image: Pixels, quality: int) -> bytes:
    with patch.dict(os.environ, {"TJ_ARITHMETIC": "1"}):  # read by TurboJPEG
        return turbojpeg.encode(image, quality=quality)


def _of_opencv(factor: str) -> Callable[[Pixels, int], bytes]:
    code = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")

    def encode(image: Pixels, quality: int) -> bytes:
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, code, cv2.IMWRITE_JPEG_QUALITY, quality]
        return cv2.imencode(".jpg", image, options)[1].tobytes()

    return encode


def _of_pillow(
    change: Callable[[bytes], bytes] = bytes, **options: object
) -> Callable[[Pixels, int], bytes]:
    def encode(image: Pixels, quality: int) -> bytes:
        # Pillow's buffer is too small for noise at a high quality.
        with patch.object(ImageFile, "MAXBLOCK", max(1 << 16, 4 * image.size)):
            return change(jpeg(image, quality=quality, **options))

    return encode


def _as_mode(mode: str) -> Callable[[Pixels, int], bytes]:
    def encode(image: Pixels, quality: int) -> bytes:
        return jpeg(Image.fromarray(image).convert(mode), quality=quality)

    return encode


_SPOTS = np.random.default_rng(0).integers(0, 2, (64, 64, 3), dtype=np.uint8) * np.uint8(255)
_METADATA = {"exif": bytes(3000), "comment": b"a comment", "icc_profile": bytes(9000)}
_CHANGES = [_merged, _split, _twice, _extended, _without_jfif, _with_adobe, _trailing]
_SAMPLINGS = {"444": 0, "422": 1, "420": 2}

INDEXED: dict[str, Callable[[Pixels, int], bytes]] = {}
"""Encoders of RGB pixels at a quality, for JPEGs that an index can describe."""
for _name, _number in _SAMPLINGS.items():
    INDEXED[_name] = _of_pillow(subsampling=_number)
    INDEXED[f"{_name} optimized"] = _of_pillow(subsampling=_number, optimize=True)
    INDEXED[f"{_name} metadata"] = _of_pillow(subsampling=_number, **_METADATA)
    for _change in _CHANGES:
        INDEXED[f"{_name}{_change.__name__}"] = _of_pillow(_change, subsampling=_number)

OTHERS: dict[str, Callable[[Pixels, int], bytes]] = {
    "440": _of_opencv("440"),
    "411": _of_opencv("411"),
    "grey": _as_mode("L"),
    "rgb": _of_pillow(keep_rgb=True),
    "progressive": _of_pillow(progressive=True),
    "restarts": _of_pillow(restart_marker_blocks=3),
    "restart rows": _of_pillow(restart_marker_rows=1, subsampling=0),
    "fill bytes": _of_pillow(_filled),
    "arithmetic": _arithmetic,
}
"""Encoders for JPEGs that have no index."""
