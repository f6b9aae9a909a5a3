"""`convert_box` against its twin: every subsampling, odd sizes, narrow planes and boxes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels.ycc import box_scratch_bytes, convert_box
from tests.reference import ycc as reference
from tests.support.guards import guarded

SUBSAMPLINGS = [(1, 1), (1, 2), (2, 2)]


def planes(height: int, width: int, subsampling: tuple[int, int], seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    v, h = subsampling
    shapes = [(height, width), *2 * [(-(-height // v), -(-width // h))]]
    values = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    # Odd seeds give extreme values, with the largest sums and clamping everywhere.
    return [
        np.where(value > 127, 255, 0).astype(np.uint8) if seed % 2 else value for value in values
    ]


@st.composite
def cases(draw: Any) -> tuple[list[Any], tuple[int, int], tuple[int, int, int, int]]:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 90))
    subsampling = draw(st.sampled_from(SUBSAMPLINGS))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = (top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))
    return planes(height, width, subsampling, draw(st.integers(0, 99))), subsampling, box


def converted(
    values: Any, subsampling: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint8]:
    """Convert a box, and check that padding is not read and that only outputs are written."""
    top, left, height, width = (0, 0, *values[0].shape) if box is None else box
    padded = [np.pad(value, ((0, 0), (0, 5)), constant_values=99) for value in values]
    with guarded(box_scratch_bytes(width)) as scratch, guarded(3 * height * width) as flat:
        out = flat.reshape(height, width, 3)
        convert_box(*padded, values[1].shape[1], *subsampling, top, left, scratch, out)
    return out


@settings(max_examples=200)
@given(cases())
def test_boxes_equal_the_twins(case: Any) -> None:
    values, *options = case
    expected = reference.ycc_to_rgb(*values, *options)
    np.testing.assert_array_equal(converted(values, *options), expected)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_small_images_equal_the_twins(subsampling: tuple[int, int]) -> None:
    for height in range(1, 8):
        for width in range(1, 10):
            values = planes(height, width, subsampling, 10 * height + width)
            expected = reference.ycc_to_rgb(*values, subsampling)
            np.testing.assert_array_equal(converted(values, subsampling), expected)


@pytest.mark.parametrize("luma", [0, 1, 77, 128, 254, 255])
def test_every_colour_equals_the_twins(luma: int) -> None:
    blue, red = np.mgrid[:256, :256].astype(np.uint8)
    values = np.full((256, 256), luma, dtype=np.uint8), blue, red
    expected = reference.ycc_to_rgb(*values, (1, 1))
    np.testing.assert_array_equal(converted(values, (1, 1)), expected)
