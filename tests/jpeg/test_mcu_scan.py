"""`scan_mcus` against a reader of JPEGs written from the standard."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dp4tl_ffcv.jpeg.coding import COLUMNS, FIELDS, ROWS, read_coding
from dp4tl_ffcv.jpeg.mcu_scan import LOOKUPS, scan_mcus
from tests.reference.jpeg import NoIndexError, mcu_starts
from tests.support.guards import fenced, guarded
from tests.support.images import jpeg, picture

Mcus = tuple[list[int], list[list[int]]]


def scanned(data: NDArray[np.uint8]) -> Mcus | None:
    """Run the kernels next to a page that they must not touch, after the data or before it."""
    found = [_scanned(fenced(data, after)) for after in (True, False)]
    assert found[0] == found[1]
    return found[0]


def _scanned(data: NDArray[np.uint8]) -> Mcus | None:
    coding = np.zeros(FIELDS, dtype=np.int64)
    if not read_coding(data, coding):
        return None
    count = int(coding[ROWS] * coding[COLUMNS]) + 1
    lookups = np.zeros((6, LOOKUPS // 6), dtype=np.int16)
    with guarded(8 * count) as one, guarded(6 * count) as other:
        positions, predictors = one.view(np.int64), other.view(np.int16).reshape(count, 3)
        if not scan_mcus(data, coding, lookups, positions, predictors):
            return None
        return positions.tolist(), predictors.tolist()


def expected(data: NDArray[np.uint8]) -> Mcus | None:
    try:
        return mcu_starts(data.tobytes())
    except NoIndexError:
        return None


def encoded(image: Any, **options: Any) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(jpeg(image, **options)), dtype=np.uint8)


def check(image: Any, **options: Any) -> Mcus:
    data = encoded(image, **options)
    found = scanned(data)
    assert found is not None
    assert found == expected(data)
    return found


def noise(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("optimize", [False, True])
def test_mcus_start_where_the_standard_says(subsampling: int, optimize: bool) -> None:
    options = {"subsampling": subsampling, "optimize": optimize}
    for quality in (1, 5, 20, 50, 75, 90, 95, 100):
        check(picture(33, 61, seed=quality), quality=quality, **options)
        check(noise(20, 50), quality=quality, **options)  # every fourth byte or so is 255
    for height, width in ((1, 1), (1, 300), (300, 1), (8, 8), (16, 17), (31, 130)):
        check(picture(height, width), **options)
        check(np.full((height, width, 3), (9, 200, 77), np.uint8), **options)  # codes of one bit


def test_a_last_byte_of_255_is_followed_by_a_zero_byte() -> None:
    seen = set()
    for seed in range(1, 400):
        image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        data = encoded(image, subsampling=0, quality=100)
        assert scanned(data) == expected(data)
        seen.add(data[-4:-2].tobytes() == b"\xff\0")
    assert seen == {True, False}


def test_data_with_several_kinds_of_coding_are_distinguished() -> None:
    for options in ({"progressive": True}, {"restart_marker_blocks": 2}, {"keep_rgb": True}):
        data = encoded(picture(40, 50), **options)
        assert scanned(data) == expected(data)
    for mode in ("L", "CMYK"):
        assert scanned(encoded(Image.fromarray(picture(40, 50)).convert(mode))) is None


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_truncated_data_are_rejected_at_every_byte(subsampling: int) -> None:
    data = encoded(picture(20, 50), subsampling=subsampling, quality=60)
    for stop in range(data.size):
        assert scanned(data[:stop]) is None, stop
    for stop in range(data.size):
        assert scanned(np.concatenate((data[:stop], data[-2:]))) == (
            expected(np.concatenate((data[:stop], data[-2:])))
        )


@pytest.mark.parametrize("seed", range(4))
def test_damaged_data_have_the_mcus_of_the_standard_or_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = 0
    for number in range(500):
        options = {"subsampling": number % 3, "optimize": number % 2 == 1}
        quality = int(rng.integers(1, 101))
        data = encoded(picture(17, 50, seed=number % 4), quality=quality, **options)
        limit = data.size if number % 3 else bytes(data).index(b"\xff\xda") + 14  # the header
        places = rng.integers(2, limit, rng.integers(1, 4))
        data[places] = rng.choice([*range(256), 0, 255, 255], places.size)
        found = scanned(data)
        whole += found is not None
        assert found == expected(data), number
    assert 50 < whole < 450
