"""The exponential and the conversion of half precision in compiled code, against numpy."""

from typing import Any

import numpy as np
import pytest
from numba import njit

from dp4tl_ffcv.kernels import intrinsics
from dp4tl_ffcv.kernels.intrinsics import as_words, exponential, widened

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)  # all of them


@njit
def exponentials(values: Any, results: Any) -> None:
    for position in range(values.size):
        results[position] = exponential(values[position])


@njit
def widen(values: Any, results: Any) -> None:
    for position in range(values.size):
        results[position] = widened(values[position])


def test_the_float32_exponential_is_within_its_error_bound() -> None:
    values = -np.concatenate(
        [np.linspace(0, 87, 1_000_003), np.logspace(-30, 0, 1001), np.arange(88)]
    ).astype(np.float32)
    results = np.empty_like(values)
    exponentials(values, results)
    exact = np.exp(values.astype(np.float64))
    np.testing.assert_allclose(results, exact, rtol=1e-7)


def test_the_exponential_is_one_at_zero_and_tiny_far_below() -> None:
    values = np.array([0.0, -0.0, -88, -1e30, -np.inf], dtype=np.float32)
    results = np.empty_like(values)
    exponentials(values, results)
    assert results[:2].tolist() == [1, 1]
    assert np.all(results[2:] > 0)
    assert np.all(results[2:] < 2e-38)


def test_the_float64_exponential_is_numpys() -> None:
    values = -np.logspace(-300, 2.8, 1000)
    results = np.empty_like(values)
    exponentials(values, results)
    np.testing.assert_allclose(results, np.exp(values), rtol=1e-15)


@pytest.mark.parametrize("hardware", [True, False])
def test_every_half_is_widened_to_its_value(
    hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intrinsics, "_HAS_HALVES", hardware and intrinsics._HAS_HALVES)
    results = np.empty(len(HALVES))
    widen(as_words(HALVES), results)
    np.testing.assert_array_equal(results, HALVES.astype(np.float64))
    np.testing.assert_array_equal(np.signbit(results), np.signbit(HALVES))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wider_floats_keep_their_values(dtype: Any) -> None:
    values = np.random.default_rng(1).normal(size=100).astype(dtype)
    assert as_words(values) is values
    results = np.empty(100)
    widen(values, results)
    np.testing.assert_array_equal(results, values)
