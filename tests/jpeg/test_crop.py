"""`decode_crop` against ffcv's decoder: the same pixels, and a status for corrupt data."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from ffcv.libffcv import imdecode
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv.jpeg.crop import (
    BAD_REQUEST,
    CORRUPT,
    DECODED,
    NOT_A_JPEG,
    WRONG_SIZE,
    decode_crop,
    jpeg_scratch_bytes,
)
from dp4tl_ffcv.jpeg.index_jpeg import index_jpeg
from dp4tl_ffcv.jpeg.mcu_index import LARGEST_SHARE, is_index_of
from tests.support.guards import guarded
from tests.support.images import jpeg, picture
from tests.support.jpegs import of_scans

Box = tuple[int, int, int, int]

NO_INDEX = np.empty(0, dtype=np.uint8)


def encoded(image: Any, **options: Any) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(jpeg(image, **options)), dtype=np.uint8)


def decoded_by_ffcv(data: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    imdecode(data, image, height, width, height, width)
    return image


def decode(
    data: NDArray[np.uint8], size: tuple[int, int], box: Box | None = None
) -> tuple[int, NDArray[np.uint8]]:
    """Decode a box, and check that only `scratch` and `out` are written."""
    top, left, height, width = box or (0, 0, *size)
    with guarded(jpeg_scratch_bytes(*size)) as scratch, guarded(3 * height * width) as flat:
        out = flat.reshape(height, width, 3)
        status = decode_crop(data, NO_INDEX, *size, top, left, height, width, scratch, out)
    index = index_of(data, size)
    if index.size:
        with guarded(jpeg_scratch_bytes(*size)) as scratch, guarded(3 * height * width) as flat:
            again = flat.reshape(height, width, 3)
            request = (*size, top, left, height, width)
            assert decode_crop(data, index, *request, scratch, again) == status == DECODED
        np.testing.assert_array_equal(again, out)
    return status, out


def index_of(data: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the index of a JPEG, and check that only `scratch` and `out` are written."""
    room = int(LARGEST_SHARE * data.size) // 8 * 8
    with guarded(jpeg_scratch_bytes(*size)) as scratch, guarded(room) as out:
        length = index_jpeg(data, *size, scratch, out)
    assert length == 0 or is_index_of(out[:length], data)
    return out[:length].copy()


def boxes_of(height: int, width: int, seed: int) -> list[Box]:
    """List the whole image, a pixel in each corner, a row, a column and random boxes."""
    rng = np.random.default_rng(seed)
    boxes = [(0, 0, height, width)]
    boxes += [(y, x, 1, 1) for y in (0, height - 1) for x in (0, width - 1)]
    boxes += [(height // 2, 0, 1, width), (0, width // 2, height, 1)]
    for _ in range(4):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        rows, columns = rng.integers(1, height - top + 1), rng.integers(1, width - left + 1)
        boxes.append((top, left, int(rows), int(columns)))
    return boxes


def check(data: NDArray[np.uint8], height: int, width: int) -> None:
    expected = decoded_by_ffcv(data, height, width)
    for top, left, rows, columns in boxes_of(height, width, seed=height + width):
        status, pixels = decode(data, (height, width), (top, left, rows, columns))
        assert status == DECODED
        wanted = expected[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(pixels, wanted, err_msg=f"{(top, left, rows, columns)}")


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_every_small_size_has_ffcvs_pixels(subsampling: int) -> None:
    for height in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 36):
        for width in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 40):
            data = encoded(picture(height, width), quality=92, subsampling=subsampling)
            expected = decoded_by_ffcv(data, height, width)
            status, pixels = decode(data, (height, width))
            assert status == DECODED
            np.testing.assert_array_equal(pixels, expected, err_msg=f"{(height, width)}")


@pytest.mark.parametrize("size", [(96, 160), (97, 161), (131, 66), (250, 333), (400, 17)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 90, 100])
def test_crops_have_ffcvs_pixels(size: tuple[int, int], subsampling: int, quality: int) -> None:
    data = encoded(picture(*size), quality=quality, subsampling=subsampling)
    check(data, *size)


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 7, "progressive": True},
        {"exif": bytes(3000), "comment": b"a comment", "icc_profile": bytes(70_000)},
    ],
    ids=str,
)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_other_codings_have_ffcvs_pixels(options: dict[str, Any], subsampling: int) -> None:
    data = encoded(picture(83, 117), subsampling=subsampling, **options)
    check(data, 83, 117)
    data.setflags(write=False)
    check(data, 83, 117)


@pytest.mark.parametrize("factor", ["411", "420", "422", "440", "444"])
def test_sampling_factors_of_opencv_have_ffcvs_pixels(factor: str) -> None:
    code = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")
    for size in ((90, 131), (5, 3), (40, 64)):
        options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, code]
        data = cv2.imencode(".jpg", picture(*size), options)[1].reshape(-1)
        check(data, *size)


def test_grey_and_rgb_images_have_ffcvs_pixels() -> None:
    check(encoded(picture(75, 91)[..., 0]), 75, 91)
    check(encoded(picture(75, 91), keep_rgb=True), 75, 91)


def test_fill_bytes_before_a_marker_change_nothing() -> None:
    data = encoded(picture(75, 91))
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"):
        at = bytes(data).index(marker)
        for count in (1, 2, 7):
            filled = np.concatenate((data[:at], np.full(count, 0xFF, np.uint8), data[at:]))
            check(filled, 75, 91)


def test_data_too_long_to_be_copied_are_decoded() -> None:
    data = encoded(picture(40, 50), comment=bytes(65_000), exif=bytes(65_000))
    assert data.size > jpeg_scratch_bytes(40, 50)
    check(data, 40, 50)


def test_rows_below_the_crop_are_not_decoded() -> None:
    data = encoded(picture(160, 160), quality=90)
    expected = decoded_by_ffcv(data, 160, 160)
    data[-data.size // 4 : -2] = 0x55  # contains no marker
    assert decode(data, (160, 160))[0] == CORRUPT
    status, pixels = decode(data, (160, 160), (3, 5, 70, 150))
    assert status == DECODED
    np.testing.assert_array_equal(pixels, expected[3:73, 5:155])


@pytest.mark.parametrize("box", [None, (0, 0, 9, 9), (20, 10, 60, 50)])
def test_corrupt_data_are_detected(box: Box | None) -> None:
    size = (120, 160)
    data = encoded(picture(*size), quality=90)
    scan = bytes(data).index(b"\xff\xda")
    rng = np.random.default_rng(0)
    for stop in (1, 2, 3, 20, 160, scan - 1, scan + 1):
        assert decode(data[:stop], size, box)[0] == NOT_A_JPEG, stop
    for stop in (scan + 20, data.size // 2, data.size - 300, data.size - 2, data.size - 1):
        assert decode(data[:stop], size, box)[0] == CORRUPT, stop
        zeroed = data.copy()
        zeroed[stop:] = 0
        assert decode(zeroed, size, box)[0] == CORRUPT, stop
    for other in (data[:0], np.zeros_like(data), rng.integers(0, 256, 5000, dtype=np.uint8)):
        assert decode(other, size, box)[0] == NOT_A_JPEG
    restart = encoded(picture(*size), restart_marker_blocks=3)
    again = bytes(restart).index(b"\xff\xd1")
    lost = np.concatenate((restart[:again], restart[again + 40 :]))
    assert decode(lost, size, box)[0] == CORRUPT
    wordy = np.concatenate((data[:-2], np.full(50, 0x55, np.uint8), data[-2:]))
    assert decode(wordy, size)[0] == CORRUPT
    cmyk = encoded(Image.fromarray(picture(*size)).convert("CMYK"))
    assert decode(cmyk, size, box)[0] == CORRUPT
    assert decode(data, size, box)[0] == DECODED


def test_the_number_of_scans_is_limited() -> None:
    for count, expected in {1: DECODED, 500: DECODED, 757: CORRUPT}.items():
        data = np.frombuffer(bytearray(of_scans(count)), dtype=np.uint8)
        assert decode(data, (8, 8))[0] == expected, count


@pytest.mark.parametrize("size", [(119, 160), (120, 161), (160, 120), (1, 1), (4000, 3000)])
def test_another_size_is_detected(size: tuple[int, int]) -> None:
    data = encoded(picture(120, 160))
    assert decode(data, size, (0, 0, 1, 1))[0] == WRONG_SIZE


def test_tables_of_the_previous_image_are_not_used() -> None:
    data = encoded(picture(70, 90))
    for marker in (b"\xff\xdb", b"\xff\xc0"):
        lost = data.copy()
        lost[bytes(data).index(marker) + 1] = 0xE9  # turns the segment into application data
        for _ in range(2):
            assert decode(data, (70, 90))[0] == DECODED
            assert decode(lost, (70, 90), (0, 0, 9, 9))[0] in (NOT_A_JPEG, CORRUPT)


def test_damaged_data_give_ffcvs_pixels_or_a_status() -> None:
    rng = np.random.default_rng(7)
    size, seen = (70, 90), set()
    sound = encoded(picture(*size))
    sound_pixels = decoded_by_ffcv(sound, *size)
    for number in range(400):
        options = {"subsampling": number % 3, "progressive": number % 5 == 0}
        data = encoded(picture(*size, seed=number % 4), quality=80, **options)
        limit = data.size if number % 2 else 640  # every other time, only the header
        places = rng.integers(2, limit, rng.integers(1, 4))
        data[places] = rng.integers(0, 256, places.size)
        box = boxes_of(*size, seed=number)[-1]
        status, pixels = decode(data, size, box)
        seen.add(status)
        if status == DECODED:
            top, left, rows, columns = box
            with ThreadPoolExecutor(1) as fresh:  # ffcv keeps tables per thread
                image = fresh.submit(decoded_by_ffcv, data, *size).result()
            expected = image[top : top + rows, left : left + columns]
            np.testing.assert_array_equal(pixels, expected)
        else:  # the next image is not affected
            status, pixels = decode(sound, size)
            assert status == DECODED
            np.testing.assert_array_equal(pixels, sound_pixels)
    assert seen == {DECODED, NOT_A_JPEG, WRONG_SIZE, CORRUPT}


def test_bad_boxes_and_buffers_are_rejected() -> None:
    boxes = [
        (-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 31, 5), (0, 0, 5, 41), (30, 0, 1, 1), (0, 0, 0, 5),
    ]  # fmt: skip
    for box in boxes:
        assert decode(encoded(picture(30, 40)), (30, 40), box)[0] == BAD_REQUEST
    data, out = encoded(picture(30, 40)), np.zeros((30, 40, 3), dtype=np.uint8)
    scratch = np.zeros(jpeg_scratch_bytes(30, 40), dtype=np.uint8)
    request = (30, 40, 0, 0, 30, 40)
    assert decode_crop(data, NO_INDEX, *request, scratch, out) == DECODED
    assert decode_crop(data, NO_INDEX, *request, scratch[:-1], out) == BAD_REQUEST
    assert decode_crop(data, NO_INDEX, *request, scratch, out[:, :39].copy()) == BAD_REQUEST
