"""`class_members` against its twin, at the slab borders, for any thread count, on bad input."""

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels import class_members
from dp4tl_ffcv.kernels.members import _LABELS_PER_THREAD
from tests import reference

INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@st.composite
def labelled(draw: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    retained = draw(st.lists(st.booleans(), min_size=1, max_size=120))
    labels = draw(st.lists(st.integers(0, len(retained) - 1), max_size=60))
    return np.array(labels, dtype=draw(st.sampled_from(INTEGERS))), np.array(retained)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(labelled())
def test_members_are_those_of_the_twin(case: tuple[NDArray[Any], NDArray[np.bool_]]) -> None:
    members = class_members(*case)
    assert members.dtype == np.int64
    np.testing.assert_array_equal(members, reference.class_members(*case))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("slabs", [1, 2, 3])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_every_member_is_found_at_the_slab_borders(
    slabs: int, more: int, keep: float, thread_counts: list[int]
) -> None:
    rng = np.random.default_rng(slabs)
    retained = rng.random(50) < keep
    labels = rng.integers(0, 50, slabs * _LABELS_PER_THREAD + more)
    for count in thread_counts:
        numba.set_num_threads(count)
        members = class_members(labels, retained)
        np.testing.assert_array_equal(members, np.flatnonzero(retained[labels]))


@pytest.mark.parametrize("per_thread", [1, 2, 3, 5])
def test_uneven_slabs_cover_all_labels(
    per_thread: int, thread_counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp4tl_ffcv.kernels.members._LABELS_PER_THREAD", per_thread)
    numba.set_num_threads(thread_counts[-1])
    retained = np.array([True, False, True, False, False])
    for size in range(30):
        labels = np.arange(size) * 3 % 5
        expected = reference.class_members(labels, retained)
        np.testing.assert_array_equal(class_members(labels, retained), expected)


@pytest.mark.parametrize("labels", [[], np.zeros(0, dtype=np.int64)])
def test_no_labels_have_no_members(labels: Any) -> None:
    assert class_members(labels, [True, False]).shape == (0,)


def test_arguments_are_read_right_in_any_layout_and_left_alone() -> None:
    labels, retained = np.arange(24)[::-2] % 6, np.arange(12)[::2] % 4 == 0
    labels.setflags(write=False)
    retained.setflags(write=False)
    np.testing.assert_array_equal(class_members(labels, retained), np.flatnonzero(retained[labels]))


@pytest.mark.parametrize("label", [-1, 3, 2**62, np.iinfo(np.int64).min])
@pytest.mark.parametrize("size", [2, 3 * _LABELS_PER_THREAD])
def test_a_label_out_of_range_is_refused(label: int, size: int) -> None:
    labels = np.zeros(size, dtype=np.int64)
    labels[-1] = label
    with pytest.raises(ValueError, match=r"^`labels` must lie in \[0, 3\)"):
        class_members(labels, [True, True, True])


def test_an_unsigned_label_beyond_int64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^`labels` must lie in"):
        class_members(np.array([2**64 - 1], dtype=np.uint64), [True])


@pytest.mark.parametrize("labels", [[0.0, 1.0], [True, False], ["0"], [None]])
def test_labels_that_are_not_integers_are_refused(labels: Any) -> None:
    with pytest.raises(TypeError, match=r"^`labels` must be integers"):
        class_members(labels, [True, True])


@pytest.mark.parametrize("retained", [[0, 1], [0.0], [None]])
def test_flags_that_are_not_bool_are_refused(retained: Any) -> None:
    with pytest.raises(TypeError, match=r"^`retained` must be bool"):
        class_members([0], retained)


@pytest.mark.parametrize("retained", [True, [[True]]])
def test_flags_of_another_shape_are_refused(retained: Any) -> None:
    with pytest.raises(ValueError, match=r"^`retained` must have shape \(C,\)"):
        class_members([0], retained)


def test_without_classes_no_label_is_in_range() -> None:
    with pytest.raises(ValueError, match=r"^`labels` must lie in \[0, 0\)"):
        class_members([0], np.zeros(0, dtype=bool))
