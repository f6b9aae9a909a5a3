"""`resize_area` against its twin and OpenCV, and the memory that `resize_crop` writes."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels.resize import resize_area, resize_crop, resize_scratch_bytes
from tests.reference.resize import resize_area as reference
from tests.support.guards import guarded


def picture(height: int, width: int, seed: int, kind: str) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "smooth":
        return cv2.blur(noise, (5, 5)).reshape(noise.shape)
    return np.where(noise > 127, 255, 0).astype(np.uint8) if kind == "extreme" else noise


@st.composite
def crops(draw: Any) -> tuple[NDArray[np.uint8], tuple[int, int], tuple[int, int, int, int], bool]:
    longest = draw(st.sampled_from((3, 12, 70, 300)))
    height, width = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    top, left, below, right = (draw(st.integers(0, 4)) for _ in range(4))
    longest = draw(st.sampled_from((3, 40, 140)))
    size = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    if draw(st.integers(0, 3)) == 0:  # integer factors are rare otherwise
        factors = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        size = max(1, height // factors[0]), max(1, width // factors[1])
        height, width = size[0] * factors[0], size[1] * factors[1]
    kind = draw(st.sampled_from(("noise", "smooth", "extreme")))
    image = picture(top + height + below, left + width + right, draw(st.integers(0, 99)), kind)
    return image, size, (top, left, height, width), draw(st.booleans())


def opencv(image: Any, size: tuple[int, int], box: Sequence[int]) -> NDArray[np.uint8]:
    top, left, height, width = box
    crop = image[top : top + height, left : left + width]
    resized = cv2.resize(crop, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8).reshape(*size, 3)


def gap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@settings(max_examples=200)
@given(crops())
def test_pixels_match_the_twin_and_opencv(case: Any) -> None:
    image, size, box, mirrored = case
    result = resize_area(image, size, box, mirrored)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    expected = reference(image, size, box, mirrored)
    assert gap(result, expected) <= 1
    assert gap(result[:, ::-1] if mirrored else result, opencv(image, size, box)) <= 1
    if result.size > 1000:
        assert np.mean(result == expected) > 0.9


@pytest.mark.parametrize("size", [(160, 160), (224, 192), (97, 131)])
@pytest.mark.parametrize("box", [(10, 20, 220, 280), (0, 0, 300, 400), (7, 9, 100, 100)])
def test_crops_of_usual_sizes_match_opencv(size: Any, box: Any) -> None:
    image = picture(300, 400, 1, "noise")
    result = resize_area(image, size, box)
    assert gap(result, opencv(image, size, box)) <= 1
    assert np.mean(result == reference(image, size, box)) > 0.95


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1), (5, 40)),  # a single pixel
        ((40, 40), (40, 40)),  # unchanged
        ((64, 96), (32, 48)),  # halved
        ((128, 64), (32, 16)),  # a quarter
        ((30, 100), (60, 25)),  # one axis grows
        ((100, 30), (25, 60)),
        ((2, 500), (1, 3)),  # extreme aspects
        ((500, 12), (3, 2)),
        ((600, 600), (2, 2)),  # too strong for uint16
        ((3, 1500), (3, 10)),  # the strongest within uint16
        ((1500, 11), (10, 11)),
        ((11, 11), (33, 33)),  # just wider than a vector
        ((11, 10), (33, 33)),
        ((97, 89), (96, 88)),
    ],
)
def test_odd_shapes_match_opencv(shape: tuple[int, int], size: tuple[int, int]) -> None:
    for kind in ("noise", "extreme"):
        image = picture(*shape, 2, kind)
        result = resize_area(image, size)
        assert gap(result, opencv(image, size, (0, 0, *shape))) <= 1
        assert gap(result, reference(image, size)) <= 1


@settings(max_examples=100)
@given(crops(), st.sampled_from((0, 1, 100, 254, 255)))
def test_a_constant_image_stays_constant(case: Any, level: int) -> None:
    image, size, box, mirrored = case
    result = resize_area(np.full_like(image, level), size, box, mirrored)
    assert np.all(result == level)


@settings(max_examples=50)
@given(crops())
def test_mirroring_and_cropping_are_exact(case: Any) -> None:
    image, size, box, _ = case
    top, left, height, width = box
    result = resize_area(image, size, box)
    np.testing.assert_array_equal(resize_area(image, size, box, True), result[:, ::-1])
    crop = image[top : top + height, left : left + width]
    np.testing.assert_array_equal(resize_area(crop, size), result)


def test_a_read_only_image_of_the_requested_size_is_unchanged() -> None:
    image = picture(50, 70, 3, "noise")
    image.setflags(write=False)
    np.testing.assert_array_equal(resize_area(image, (50, 70)), image)


@settings(max_examples=100)
@given(crops(), st.integers(0, 255))
def test_only_scratch_and_destination_are_written(case: Any, fill: int) -> None:
    image, size, box, mirrored = case
    image.setflags(write=False)  # as `resize_area` passes images, for which the kernel is compiled
    needed = resize_scratch_bytes(box[3], *size)
    with guarded(needed) as scratch, guarded(3 * size[0] * size[1]) as flat:
        scratch[:] = fill  # the content of the scratch memory does not matter
        result = flat.reshape(*size, 3)
        resize_crop(image, *box, mirrored, result, scratch)
    np.testing.assert_array_equal(result, resize_area(image, size, box, mirrored))
