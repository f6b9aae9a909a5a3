"""`nearest_mean` against its twin: ties, near ties, huge and tiny values, any thread count."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels import nearest_mean
from dp4tl_ffcv.kernels.nearest import _BLOCK_ROWS
from tests import reference

FLOATS = (np.float16, np.float32, np.float64)
Case = tuple[NDArray[Any], NDArray[Any]]


@st.composite
def whole_numbers(draw: Any) -> Case:
    """Small integers: distances are exact, and exact ties are common."""
    rows, classes, columns = (draw(st.integers(*ends)) for ends in ((0, 30), (1, 9), (1, 6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    reach = draw(st.sampled_from((1, 3, 40)))
    features, means = (rng.integers(-reach, reach + 1, (n, columns)) for n in (rows, classes))
    return features.astype(draw(st.sampled_from(FLOATS))), with_absent(draw, means.astype(float))


@st.composite
def real_numbers(draw: Any) -> Case:
    """Gaussians around means of any spread, any distance from the origin, any size."""
    rows, classes, columns = (draw(st.integers(*ends)) for ends in ((0, 30), (1, 9), (1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = 10.0 ** draw(st.sampled_from((-3, 0, 2)))
    offset = draw(st.sampled_from((0.0, 1.0, 50.0))) * rng.normal(size=columns)
    means = offset + rng.normal(size=(classes, columns))
    features = offset + draw(st.sampled_from((0.1, 2.0))) * rng.normal(size=(rows, columns))
    dtype = draw(st.sampled_from(FLOATS))
    return (size * features).astype(dtype), with_absent(draw, size * means)


def with_absent(draw: Any, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mark some of the classes, but not all, as classes without samples."""
    absent = draw(st.lists(st.booleans(), min_size=len(means), max_size=len(means)))
    absent[draw(st.integers(0, len(means) - 1))] = False
    return np.where(np.array(absent)[:, None], np.nan, means)


def assert_like_twin(features: NDArray[Any], means: NDArray[Any], rtol: float = 1e-3) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nearest, votes, own = nearest_mean(features, means)
    expected, expected_votes, expected_own = reference.nearest_mean(features, means)
    assert nearest.dtype == np.int64
    np.testing.assert_array_equal(nearest, expected)
    np.testing.assert_allclose(votes, expected_votes, rtol=rtol, atol=rtol * max(1, len(features)))
    np.testing.assert_allclose(own, expected_own, rtol=rtol, atol=rtol)
    absent = np.isnan(means).any(axis=1)
    assert not votes[absent].any()
    assert not absent[nearest].any()
    assert votes.sum() == pytest.approx(len(features))


def rounded_argmin(features: NDArray[Any], means: NDArray[Any]) -> NDArray[np.int64]:
    """Return the classes according to the usual float32 matrix product."""
    rows, centres = features.astype(np.float32), means.astype(np.float32)
    return np.argmin((centres**2).sum(axis=1) - 2 * rows @ centres.T, axis=1)


@settings(max_examples=200)
@given(whole_numbers())
def test_integers_give_the_twins_classes_and_votes(case: Case) -> None:
    assert_like_twin(*case, rtol=1e-5)


@settings(max_examples=200)
@given(real_numbers())
def test_real_numbers_give_the_twins_classes_and_votes(case: Case) -> None:
    assert_like_twin(*case)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_near_ties_that_float32_gets_wrong_are_resolved(offset: float) -> None:
    rng = np.random.default_rng(2)
    middle = offset + rng.normal(size=64)
    step = rng.normal(size=64)
    means = np.stack([middle + 10 * step, middle - 10 * step])
    side = rng.choice([-1, 1], 500)
    across = rng.normal(size=(500, 64))
    across -= np.outer(across @ step, step) / (step @ step)
    features = middle + 100 * across + 1e-7 * side[:, None] * step
    expected = np.where(side > 0, 0, 1)
    assert (rounded_argmin(features, means) != expected).mean() > 0.1
    np.testing.assert_array_equal(nearest_mean(features, means)[0], expected)
    assert_like_twin(features.astype(np.float32), means)


def nearly_equal_means() -> Iterator[Case]:
    rng = np.random.default_rng(4)
    for gap in (1e-6, 1e-9, 1e-12):
        means = rng.normal(size=32) + gap * rng.normal(size=(20, 32))
        yield rng.normal(size=(300, 32)).astype(np.float32), means


def far_from_the_origin() -> Iterator[Case]:
    rng = np.random.default_rng(6)
    for distance in (1e4, 1e8):
        means = distance + rng.normal(size=(15, 10)) * distance * 1e-6
        features = distance + rng.normal(size=(400, 10)) * distance * 1e-6
        yield features.astype(np.float32), means
        yield features, means


@pytest.mark.parametrize("case", [*nearly_equal_means(), *far_from_the_origin()])
def test_classes_that_float32_gets_wrong_equal_the_twins(case: Case) -> None:
    nearest, *_ = nearest_mean(*case)
    np.testing.assert_array_equal(nearest, reference.nearest_mean(*case)[0])
    assert (rounded_argmin(*case) != nearest).any()


@pytest.mark.parametrize("far", [1e3, 1e10])
def test_rows_much_longer_than_the_means_equal_the_twins(far: float) -> None:
    rng = np.random.default_rng(7)
    means = rng.normal(size=(12, 8))
    assert_like_twin((far * rng.normal(size=(300, 8))).astype(np.float32), means)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1e-30, np.float32),  # squares vanish in float32
        (1e-22, np.float32),  # squares are a few of the smallest float32 numbers
        (1e-21, np.float32),
        (1e18, np.float32),
        (1e19, np.float32),  # some squares overflow float32
        (1e20, np.float32),
        (1e38, np.float32),  # moving rows to the mean of the means overflows as well
        (1e-140, np.float64),
        (1e140, np.float64),
    ],
)
def test_tiny_and_huge_values_equal_the_twins(size: float, dtype: Any) -> None:
    rng = np.random.default_rng(9)
    means = size * rng.uniform(-3, 3, size=(10, 4))
    features = (size * rng.uniform(-3, 3, size=(500, 4))).astype(dtype)
    nearest, votes, _ = nearest_mean(features, means)
    np.testing.assert_array_equal(nearest, reference.nearest_mean(features, means)[0])
    assert len(set(nearest.tolist())) > 5
    assert votes.sum() == pytest.approx(500)


@pytest.mark.parametrize("size", [1e-12, 1e12, 1e19, 1e37])
def test_votes_do_not_depend_on_the_scale(size: float) -> None:
    rng = np.random.default_rng(10)
    means = rng.normal(size=(6, 5))
    features = rng.normal(size=(100, 5)).astype(np.float32)
    _, votes, _ = nearest_mean(features, means)
    _, scaled, _ = nearest_mean((features * np.float32(size)), size * means)
    np.testing.assert_allclose(scaled, votes, rtol=1e-4)


def test_votes_of_a_row_follow_the_formula() -> None:
    _, votes, _ = nearest_mean(np.array([[0.0]]), np.array([[1.0], [np.nan], [2.0], [-3.0]]))
    weights = np.exp(np.array([0.0, -3.0, -8.0]) / (11 / 3))  # squared distances 1, 4, 9
    one, two, three = weights / weights.sum()
    np.testing.assert_allclose(votes, [one, 0, two, three], rtol=1e-12)


@pytest.mark.parametrize(
    ("features", "means", "nearest", "votes"),
    [
        (np.zeros((0, 3)), np.ones((4, 3)), [], [0, 0, 0, 0]),
        (np.zeros((6, 2)), [[3.0, 4.0], [5.0, 0.0], [-4.0, -3.0]], [0] * 6, [2, 2, 2]),
        (np.arange(6.0).reshape(3, 2), [[7.0, 7.0]], [0, 0, 0], [3]),
        (np.zeros((2, 2)), [[0.0, np.nan], [9.0, 9.0], [np.nan, np.nan]], [1, 1], [0, 2, 0]),
    ],
    ids=["no rows", "equally near means", "one class", "absent classes"],
)
def test_special_cases(features: Any, means: Any, nearest: list[int], votes: list[float]) -> None:
    found, sums, _ = nearest_mean(features, means)
    assert found.tolist() == nearest
    np.testing.assert_allclose(sums, votes)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("block_rows", [1, 2, 7, 49, 50, 51])
def test_bits_do_not_depend_on_threads_at_block_borders(
    block_rows: int, dtype: Any, thread_counts: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(12)
    monkeypatch.setattr("dp4tl_ffcv.kernels.nearest._BLOCK_ROWS", block_rows)
    features, means = rng.normal(size=(50, 7)).astype(dtype), rng.normal(size=(9, 7))
    assert_like_twin(features, means)
    results = set()
    for _ in thread_counts:
        results.add(b"".join(found.tobytes() for found in nearest_mean(features, means)))
    assert len(results) == 1


def test_strided_and_read_only_arguments_are_read_and_not_changed() -> None:
    rng = np.random.default_rng(13)
    features, means = rng.normal(size=(20, 12))[::-2, ::3], rng.normal(size=(4, 8))[:, ::2]
    copies = features.copy(), means.copy()
    for array in (features, means):
        array.setflags(write=False)
    assert_like_twin(features, means)
    np.testing.assert_array_equal(features, copies[0])
    np.testing.assert_array_equal(means, copies[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_features_that_are_not_finite_are_rejected(bad: float, dtype: Any) -> None:
    features = np.zeros((_BLOCK_ROWS + 5, 3), dtype=dtype)
    features[-1, 1] = bad
    with pytest.raises(ValueError, match=r"^`features` must be finite"):
        nearest_mean(features, np.eye(3))


def test_more_bad_blocks_than_threads_are_rejected_without_hanging(
    guarded: Any, thread_counts: Iterator[int]
) -> None:
    features = np.full((20 * _BLOCK_ROWS, 2), np.nan, dtype=np.float32)
    for _ in thread_counts:
        with pytest.raises(ValueError, match="`features` must be finite"):
            guarded(lambda: nearest_mean(features, np.eye(2)))
