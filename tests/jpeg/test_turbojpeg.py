"""The TurboJPEG binding: ffcv's and libjpeg's pixels, and an error for all corrupt data."""

import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from ffcv.libffcv import imdecode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv.jpeg.turbojpeg import JpegError, JpegHeader, check, decode, encode, read_header
from tests.support.images import jpeg, picture
from tests.support.jpegs import of_scans

CODINGS: list[dict[str, Any]] = [
    {},
    {"subsampling": 0},
    {"subsampling": 1},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_blocks": 3},
    {"keep_rgb": True},
    {"exif": bytes(500), "icc_profile": bytes(70_000)},
]
codings = pytest.mark.parametrize("options", CODINGS, ids=str)


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (200, 131)])
def test_pixels_survive_a_round_trip_at_the_highest_quality(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack((rows, columns, 200 - columns), axis=-1).astype(np.uint8)
    data = encode(pixels, quality=100)
    assert read_header(data) == JpegHeader(*size, subsampling=2, colorspace=1)
    assert np.abs(decode(data).astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("quality", [1, 50, 90, 100])
def test_encoding_gives_libjpegs_pixels(quality: int) -> None:
    pixels = picture(90, 120)
    expected = by_pillow(jpeg(pixels, quality=quality))
    np.testing.assert_array_equal(by_pillow(encode(pixels, quality=quality)), expected)
    view = pixels[::2, ::-1]
    assert encode(view, quality=quality) == encode(np.ascontiguousarray(view), quality=quality)


@codings
def test_decoding_gives_libjpegs_pixels_and_ffcvs_if_fast(options: dict[str, Any]) -> None:
    data = jpeg(picture(83, 117), **options)
    np.testing.assert_array_equal(decode(data), by_pillow(data))
    expected = np.zeros((83, 117, 3), dtype=np.uint8)
    imdecode(np.frombuffer(bytearray(data), dtype=np.uint8), expected, 83, 117, 83, 117)
    np.testing.assert_array_equal(decode(data, fast=True), expected)
    assert (decode(data) != expected).any()  # else the flag would not matter
    check(data)


@pytest.mark.parametrize(
    ("image", "options", "colours"),
    [
        (picture(40, 50), {"subsampling": 0}, (0, 1)),
        (picture(40, 50), {"subsampling": 1}, (1, 1)),
        (picture(40, 50), {"subsampling": 2}, (2, 1)),
        (picture(40, 50), {"keep_rgb": True}, (0, 0)),
        (picture(40, 50)[..., 0], {}, (3, 2)),
    ],
)
def test_the_header_states_subsampling_and_colours(
    image: Any, options: dict[str, Any], colours: tuple[int, int]
) -> None:
    data = jpeg(image, **options)
    assert read_header(data) == JpegHeader(40, 50, *colours)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_cmyk_images_have_a_header_but_cannot_be_decoded() -> None:
    data = jpeg(Image.fromarray(picture(40, 50)).convert("CMYK"))
    header = read_header(data)
    assert (header.height, header.width) == (40, 50)
    assert header.colorspace in (3, 4)
    with pytest.raises(JpegError, match="color conversion"):
        decode(data)


def as_array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


@pytest.mark.parametrize(
    "wrap",
    [
        bytearray,
        memoryview,
        as_array,
        lambda data: np.repeat(as_array(data), 2)[::2],
        lambda data: memoryview(np.repeat(as_array(data), 2))[::2],
    ],
    ids=["bytearray", "memoryview", "array", "strided array", "strided memoryview"],
)
def test_data_may_have_any_bytes_type(wrap: Callable[[bytes], Any]) -> None:
    data = jpeg(picture(20, 30))
    assert read_header(wrap(data)) == read_header(data)
    np.testing.assert_array_equal(decode(wrap(data)), decode(data))


@pytest.mark.parametrize("data", [b"", b"\xff", b"PNG", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(9)])
@pytest.mark.parametrize("call", [read_header, decode, check])
def test_other_data_are_rejected(call: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(JpegError, match=r"[a-zA-Z]{4}"):
        call(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_data_truncated_anywhere_are_rejected(options: dict[str, Any]) -> None:
    data = jpeg(picture(40, 50), **options)
    for size in [*range(0, len(data) - 2, 7), len(data) - 2, len(data) - 1]:
        for call in (decode, check):
            with pytest.raises(JpegError):
                call(data[:size])


def test_warnings_of_the_library_are_errors() -> None:
    data = bytearray(jpeg(picture(64, 64), restart_marker_blocks=2))
    at = data.rindex(b"\xff\xd3")
    data[at + 1] = 0xD5  # the wrong restart marker: libjpeg continues with a warning
    with pytest.raises(JpegError, match="marker"):
        decode(bytes(data))


def test_a_small_file_that_promises_gigabytes_is_rejected_at_once() -> None:
    data = bytearray(jpeg(picture(16, 16), subsampling=0))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(JpegError):
        decode(bytes(data))


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_byte_gives_pixels_or_an_error(position: int, value: int) -> None:
    data = bytearray(jpeg(picture(24, 24), subsampling=1))
    data[position % len(data)] = value
    try:
        shape = decode(data).shape
    except JpegError:
        return
    header = read_header(data)
    assert shape == (header.height, header.width, 3)


def test_an_error_does_not_affect_the_next_image() -> None:
    data = jpeg(picture(40, 50))
    expected = decode(data)
    with pytest.raises(JpegError):
        decode(data[: len(data) // 2])
    np.testing.assert_array_equal(decode(data), expected)
    frame, codes, scan = (data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
    with pytest.raises(JpegError, match="table"):  # the previous image's tables are not used
        decode(data[:2] + data[frame:codes] + data[scan:])


@pytest.mark.parametrize("call", [decode, check])
def test_the_number_of_scans_is_limited(call: Callable[[bytes], Any]) -> None:
    call(of_scans(500))
    with pytest.raises(JpegError, match="more than 500 scans"):
        call(of_scans(757))


@pytest.mark.parametrize(
    ("pixels", "quality", "match"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), 90, "`pixels` must be uint8"),
        (np.zeros((4, 4), dtype=np.uint8), 90, "`pixels` must be"),
        (np.zeros((4, 4, 4), dtype=np.uint8), 90, "`pixels` must be"),
        (np.zeros((0, 4, 3), dtype=np.uint8), 90, "`pixels` must be"),
        (np.zeros((4, 4, 3), dtype=np.uint8), 0, r"`quality` must be in \[1, 100\]"),
        (np.zeros((4, 4, 3), dtype=np.uint8), 101, "`quality` must be"),
        (np.zeros((65_501, 1, 3), dtype=np.uint8), 90, "65500"),  # longer than JPEG allows
    ],
)
def test_bad_pixels_and_qualities_are_rejected(pixels: Any, quality: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        encode(pixels, quality=quality)


def test_threads_decode_and_encode_at_the_same_time() -> None:
    images = [picture(50 + seed, 60, seed) for seed in range(8)]
    expected = [encode(image, quality=85) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = list(pool.map(lambda image: encode(image, quality=85), images))
            assert found == expected
            assert all(map(np.array_equal, pool.map(decode, found), map(decode, expected)))


def test_a_forked_process_can_decode_and_encode() -> None:
    pixels = picture(70, 90)
    data = encode(pixels, quality=85)  # the parent has used the library
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(map(np.array_equal, pool.map(decode, [data] * 4), [decode(data)] * 4))
        assert pool.apply(encode, (pixels,), {"quality": 85}) == data
