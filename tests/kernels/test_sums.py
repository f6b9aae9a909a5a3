"""`class_sums` against its twin, bit for bit, for any block size and thread count."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels import class_sums, intrinsics
from tests import reference

FLOATS = (np.float16, np.float32, np.float64)


@st.composite
def featured(draw: Any) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    rows, columns = draw(st.integers(0, 40)), draw(st.integers(1, 9))
    num_classes = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    features = rng.normal(draw(st.sampled_from((0, 30))), 1.0, (rows, columns))
    dtype = draw(st.sampled_from(FLOATS))
    return features.astype(dtype), rng.integers(0, num_classes, rows), num_classes


def assert_equal_bits(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def assert_like_twin(*case: Any) -> None:
    assert_equal_bits(class_sums(*case), reference.class_sums(*case))


@settings(max_examples=150)
@given(featured())
def test_sums_have_the_bits_of_the_twin(
    case: tuple[NDArray[Any], NDArray[np.int64], int],
) -> None:
    assert_like_twin(*case)


def test_processors_without_half_precision_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intrinsics, "_HAS_HALVES", False)
    halves = np.random.default_rng(3).normal(size=(50, 7)).astype(np.float16)
    assert_like_twin(halves, np.arange(50) % 4, 5)


def test_half_precision_neither_overflows_nor_loses_small_values() -> None:
    features = np.full((5000, 1), 65504, dtype=np.float16)
    features[1] = np.float16(6e-8)
    sums, _ = class_sums(features, np.zeros(5000, dtype=int), 1)
    assert sums[0, 0] == 4999 * 65504 + float(np.float16(6e-8))


def test_classes_without_rows_have_zero_sums_and_counts() -> None:
    sums, counts = class_sums(np.zeros((0, 4), dtype=np.float32), [], 3)
    assert_equal_bits((sums, counts), (np.zeros((3, 4)), np.zeros(3, dtype=np.int64)))
    sums, counts = class_sums(np.arange(6.0).reshape(3, 2), [2, 2, 2], 4)
    assert sums.tolist() == [[0, 0], [0, 0], [6, 9], [0, 0]]
    assert counts.tolist() == [0, 0, 3, 0]


def test_nan_and_inf_stay_in_their_class_and_column() -> None:
    features = np.array([[np.nan, 1.0], [np.inf, 2.0], [3.0, 4.0]])
    sums, _ = class_sums(features, [0, 1, 2], 3)
    np.testing.assert_array_equal(sums, [[np.nan, 1], [np.inf, 2], [3, 4]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("block_rows", [1, 2, 7, 49, 50, 51])
def test_bits_depend_neither_on_the_block_size_nor_on_threads(
    block_rows: int, dtype: Any, thread_counts: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    monkeypatch.setattr("dp4tl_ffcv.kernels.sums._BLOCK_ROWS", block_rows)
    monkeypatch.setattr("dp4tl_ffcv.kernels.sums._VALUES_PER_THREAD", 1)
    for _ in thread_counts:
        assert_like_twin(rng.normal(size=(50, 3)).astype(dtype), rng.integers(0, 4, 50), 5)


def test_strided_and_read_only_arguments_are_read_correctly() -> None:
    features, labels = np.arange(40.0).reshape(5, 8)[::-1, ::3], np.array([0, 1, 0, 1, 1])
    features.setflags(write=False)
    labels.setflags(write=False)
    assert_like_twin(features, labels, 2)
