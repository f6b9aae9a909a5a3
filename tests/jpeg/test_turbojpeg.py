"""TurboJPEG by ctypes: ffcv's pixels, sound pixels, and an error for all data that is not sound."""

import io
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv import Loader
from ffcv.fields import RGBImageField
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv import BetonIndex
from dp4tl_ffcv.jpeg.turbojpeg import JpegError, JpegHeader, decode, encode, read_header

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


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw waves of all colours with some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    steps = rng.uniform(0.02, 0.3, (3, 2))
    waves = [np.sin(rows * down + columns * right) for down, right in steps]
    noise = rng.normal(0, 6, (height, width, 3))
    return np.clip(127.5 + 100 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def pillow(image: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (200, 131)])
def test_pixels_survive_a_round_trip_at_the_highest_quality(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack((rows, columns, 200 - columns), axis=-1).astype(np.uint8)
    data = encode(pixels, quality=100)
    assert read_header(data) == JpegHeader(*size, subsampling=2, colorspace=1)
    difference = decode(data).astype(int) - pixels
    assert np.abs(difference).max() <= 4


def test_encoding_is_that_of_libjpeg_at_the_same_quality() -> None:
    pixels = picture(90, 120)
    for quality in (1, 50, 90, 100):
        assert np.array_equal(
            by_pillow(encode(pixels, quality=quality)), by_pillow(pillow(pixels, quality=quality))
        )


@pytest.mark.parametrize("options", CODINGS, ids=str)
def test_every_coding_has_the_pixels_that_libjpeg_decodes(options: dict[str, Any]) -> None:
    data = pillow(picture(83, 117), **options)
    assert np.array_equal(decode(data), by_pillow(data))


def test_grey_images_become_rgb() -> None:
    data = pillow(picture(40, 50)[..., 0])
    assert read_header(data) == JpegHeader(40, 50, subsampling=3, colorspace=2)
    assert np.array_equal(decode(data), by_pillow(data))


def test_the_header_tells_subsampling_and_colours() -> None:
    image = picture(24, 32)
    headers = [read_header(pillow(image, subsampling=kind)) for kind in (0, 1, 2)]
    assert [header.subsampling for header in headers] == [0, 1, 2]
    assert read_header(pillow(image, keep_rgb=True)).colorspace == 0


def test_images_in_four_inks_have_a_header_and_no_pixels() -> None:
    data = pillow(Image.fromarray(picture(40, 50)).convert("CMYK"))
    header = read_header(data)
    assert (header.height, header.width) == (40, 50)
    assert header.colorspace in (3, 4)
    with pytest.raises(JpegError, match="color conversion"):
        decode(data)


def test_fast_decoding_has_the_bits_that_ffcvs_loader_yields(
    stock: Callable[..., Path], tmp_path: Path
) -> None:
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90)}
    path = stock(tmp_path / "jpegs.beton", [(picture(61, 83, seed),) for seed in range(6)], fields)
    pipelines: Any = {"image": [SimpleRGBImageDecoder()]}
    (batch,) = Loader(str(path), batch_size=6, num_workers=1, pipelines=pipelines)
    content, rough = path.read_bytes(), 0
    for at, pixels in zip(BetonIndex.open(path).column("image")["data_ptr"], batch[0], strict=True):
        data = content[int(at) :]  # it ends where the image does
        assert np.array_equal(decode(data, fast=True), pixels)
        rough += not np.array_equal(decode(data), pixels)
    assert rough, "the fast transform must differ somewhere for this test to say anything"


@pytest.mark.parametrize("options", CODINGS, ids=str)
def test_fast_decoding_has_ffcvs_bits_in_every_coding(options: dict[str, Any]) -> None:
    data = np.frombuffer(bytearray(pillow(picture(83, 117), **options)), dtype=np.uint8)
    expected = np.zeros((83, 117, 3), dtype=np.uint8)
    imdecode(data, expected, 83, 117, 83, 117)
    assert np.array_equal(decode(data, fast=True), expected)


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
def test_data_may_be_any_bytes(wrap: Callable[[bytes], Any]) -> None:
    data = pillow(picture(20, 30))
    assert read_header(wrap(data)) == read_header(data)
    assert np.array_equal(decode(wrap(data)), decode(data))


@pytest.mark.parametrize("data", [b"", b"\xff", b"PNG", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(9)])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    for call in (read_header, decode):
        with pytest.raises(JpegError, match=r"[a-zA-Z]{4}"):
            call(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_data_cut_anywhere_is_refused(options: dict[str, Any]) -> None:
    data = pillow(picture(40, 50), **options)
    for size in [*range(0, len(data) - 2, 7), len(data) - 2, len(data) - 1]:
        with pytest.raises(JpegError):
            decode(data[:size])


def test_warnings_of_the_library_are_errors() -> None:
    data = bytearray(pillow(picture(64, 64), restart_marker_blocks=2))
    at = data.rindex(b"\xff\xd3")
    data[at + 1] = 0xD5  # the wrong restart marker: libjpeg goes on, with a warning
    with pytest.raises(JpegError, match="marker"):
        decode(bytes(data))


def test_a_small_file_that_promises_gigabytes_is_refused_at_once() -> None:
    data = bytearray(pillow(picture(16, 16), subsampling=0))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(JpegError):
        decode(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_byte_yields_pixels_or_an_error(position: int, value: int) -> None:
    data = bytearray(pillow(picture(24, 24), subsampling=1))
    data[position % len(data)] = value
    try:
        shape = decode(data).shape
    except JpegError:
        return
    header = read_header(data)
    assert shape == (header.height, header.width, 3)


def test_an_error_leaves_nothing_behind_for_the_next_image() -> None:
    data = pillow(picture(40, 50))
    expected = decode(data)
    with pytest.raises(JpegError):
        decode(data[: len(data) // 2])
    assert np.array_equal(decode(data), expected)
    frame, codes, scan = (data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
    with pytest.raises(JpegError, match="table"):  # not with the tables of the image before
        decode(data[:2] + data[frame:codes] + data[scan:])


@pytest.mark.parametrize(
    ("pixels", "quality", "name"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), 90, "pixels"),
        (np.zeros((4, 4), dtype=np.uint8), 90, "pixels"),
        (np.zeros((4, 4, 4), dtype=np.uint8), 90, "pixels"),
        (np.zeros((0, 4, 3), dtype=np.uint8), 90, "pixels"),
        (np.zeros((4, 4, 3), dtype=np.uint8), 0, "quality"),
        (np.zeros((4, 4, 3), dtype=np.uint8), 101, "quality"),
    ],
)
def test_pixels_and_quality_are_checked(pixels: Any, quality: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must"):
        encode(pixels, quality=quality)


def test_an_image_longer_than_jpeg_allows_is_refused() -> None:
    with pytest.raises(JpegError, match="65500"):
        encode(np.zeros((65_501, 1, 3), dtype=np.uint8), quality=90)


def test_pixels_may_be_a_view() -> None:
    pixels = picture(60, 80)
    view = pixels[::2, ::-1]
    assert encode(view, quality=80) == encode(np.ascontiguousarray(view), quality=80)


def test_threads_decode_and_encode_at_once() -> None:
    images = [picture(50 + seed, 60, seed) for seed in range(8)]
    expected = [encode(image, quality=85) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = list(pool.map(lambda image: encode(image, quality=85), images))
            assert found == expected
            pixels = list(pool.map(decode, found))
            assert all(map(np.array_equal, pixels, map(decode, expected)))


def test_a_forked_child_goes_on_decoding_and_encoding() -> None:
    pixels = picture(70, 90)
    data = encode(pixels, quality=85)  # the parent has used the library
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(map(np.array_equal, pool.map(decode, [data] * 4), [decode(data)] * 4))
        assert pool.apply(encode, (pixels,), {"quality": 85}) == data


def test_ffcv_is_not_imported() -> None:
    program = (
        "import dp4tl_ffcv.jpeg.crop\n"
        "from dp4tl_ffcv.jpeg.turbojpeg import decode, encode; import numpy as np, sys\n"
        "decode(encode(np.zeros((8, 8, 3), dtype=np.uint8), quality=90))\n"
        "assert not {'ffcv', 'torch', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
