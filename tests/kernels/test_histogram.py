"""`class_histogram` against its twin, at the slab borders, for any thread count, on bad input."""

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels import class_histogram
from dp4tl_ffcv.kernels.histogram import _LABELS_PER_THREAD
from tests import reference

INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@st.composite
def labelled(draw: Any) -> tuple[NDArray[Any], int]:
    num_classes = draw(st.integers(1, 120))
    labels = draw(st.lists(st.integers(0, num_classes - 1), max_size=60))
    return np.array(labels, dtype=draw(st.sampled_from(INTEGERS))), num_classes


@settings(derandomize=True, deadline=None, max_examples=150)
@given(labelled())
def test_counts_are_those_of_the_twin(case: tuple[NDArray[Any], int]) -> None:
    labels, num_classes = case
    counts = class_histogram(labels, num_classes)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, reference.class_histogram(labels, num_classes))
    assert counts.sum() == len(labels)


@pytest.mark.parametrize("labels", [[], (), np.zeros(0, dtype=np.int64)])
def test_no_labels_give_zero_for_every_class(labels: Any) -> None:
    np.testing.assert_array_equal(class_histogram(labels, 3), [0, 0, 0])


def test_one_class_takes_all() -> None:
    np.testing.assert_array_equal(class_histogram([0] * 7, 1), [7])


def test_absent_classes_count_zero() -> None:
    np.testing.assert_array_equal(class_histogram([1, 4, 1], 6), [0, 2, 0, 0, 1, 0])


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(24, dtype=np.int64)[::-2],
        np.arange(12, dtype=">i4"),
        np.frombuffer(bytes(range(12)), dtype=np.uint8),
        np.arange(12, dtype=np.int64).view(np.memmap),
    ],
    ids=["strided", "big-endian", "read-only", "memory map"],
)
def test_any_layout_of_the_labels_is_read_right(labels: NDArray[Any]) -> None:
    expected = reference.class_histogram(labels, 24)
    np.testing.assert_array_equal(class_histogram(labels, 24), expected)


@pytest.mark.parametrize("slabs", [1, 2, 3])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_every_label_is_counted_at_the_slab_borders(
    slabs: int, more: int, thread_counts: list[int]
) -> None:
    size = slabs * _LABELS_PER_THREAD + more
    labels = np.random.default_rng(size).integers(0, 11, size)
    expected = np.bincount(labels, minlength=12)
    for count in thread_counts:
        numba.set_num_threads(count)
        np.testing.assert_array_equal(class_histogram(labels, 12), expected)


@pytest.mark.parametrize("per_thread", [1, 2, 3, 5])
def test_uneven_slabs_cover_all_labels(
    per_thread: int, thread_counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.kernels.histogram._LABELS_PER_THREAD", per_thread)
    numba.set_num_threads(thread_counts[-1])
    for size in range(30):
        labels = np.arange(size) % 7
        expected = reference.class_histogram(labels, 7)
        np.testing.assert_array_equal(class_histogram(labels, 7), expected)


@pytest.mark.parametrize("label", [-1, 3, 2**62, np.iinfo(np.int64).min])
def test_a_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=r"^`labels` must lie in \[0, 3\)"):
        class_histogram([0, label, 2], 3)


def test_an_unsigned_label_beyond_int64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^`labels` must lie in"):
        class_histogram(np.array([2**64 - 1], dtype=np.uint64), 3)


@pytest.mark.parametrize(
    "labels", [[0.0, 1.0], [True, False], ["0"], [None], np.array([0, 1], dtype=object), [1j]]
)
def test_labels_that_are_not_integers_are_refused(labels: Any) -> None:
    with pytest.raises(TypeError, match=r"^`labels` must be integers"):
        class_histogram(labels, 3)


@pytest.mark.parametrize("labels", [0, [[0, 1]], np.zeros((2, 0), dtype=int)])
def test_labels_of_another_shape_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"^`labels` must have shape \(N,\)"):
        class_histogram(labels, 3)


@pytest.mark.parametrize("num_classes", [0, -4, np.int64(0)])
def test_fewer_than_one_class_is_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=r"^`num_classes` must be at least 1"):
        class_histogram([], num_classes)


@pytest.mark.parametrize("num_classes", [2.0, True, "2", None, np.float32(3)])
def test_a_number_of_classes_that_is_no_int_is_refused(num_classes: Any) -> None:
    with pytest.raises(TypeError, match=r"^`num_classes` must be an int"):
        class_histogram([0], num_classes)


def test_a_numpy_integer_is_a_number_of_classes() -> None:
    np.testing.assert_array_equal(class_histogram([1], np.int32(2)), [0, 1])
