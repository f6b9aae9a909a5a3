"""`class_histogram` and `class_members`: the results of the reference, for any thread count."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv.kernels import class_histogram, class_members, histogram, members
from tests import reference

INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@st.composite
def labelled(draw: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Draw labels of any integer type, and which classes are retained."""
    retained = draw(st.lists(st.booleans(), min_size=1, max_size=120))
    labels = draw(st.lists(st.integers(0, len(retained) - 1), max_size=60))
    return np.array(labels, dtype=draw(st.sampled_from(INTEGERS))), np.array(retained)


def assert_like_twins(labels: Any, retained: NDArray[np.bool_]) -> None:
    counts = class_histogram(labels, len(retained))
    found = class_members(labels, retained)
    assert counts.dtype == found.dtype == np.int64
    np.testing.assert_array_equal(counts, reference.class_histogram(labels, len(retained)))
    np.testing.assert_array_equal(found, reference.class_members(labels, retained))


@settings(max_examples=150)
@given(labelled())
def test_counts_and_members_equal_the_twins(case: tuple[NDArray[Any], NDArray[np.bool_]]) -> None:
    assert_like_twins(*case)


@pytest.mark.parametrize("labels", [[], (), np.zeros(0, dtype=np.int64)])
def test_no_labels_give_zero_counts_and_no_members(labels: Any) -> None:
    np.testing.assert_array_equal(class_histogram(labels, np.int32(3)), [0, 0, 0])
    assert class_members(labels, [True, False]).shape == (0,)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(48, dtype=np.int64)[::-2] // 2,
        np.arange(12, dtype=">i4"),
        np.frombuffer(bytes(range(12)), dtype=np.uint8),
        np.arange(12, dtype=np.int64).view(np.memmap),
    ],
    ids=["strided", "big-endian", "read-only", "memory map"],
)
def test_any_array_layout_is_read_correctly(labels: NDArray[Any]) -> None:
    retained = (np.arange(48) % 4 == 0)[::2]
    retained.setflags(write=False)
    assert_like_twins(labels, retained)


@pytest.mark.parametrize("per_thread", [1, 2, 3, 5])
def test_slabs_of_any_size_cover_all_labels(
    per_thread: int, thread_counts: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (histogram, members):
        monkeypatch.setattr(module, "_LABELS_PER_THREAD", per_thread)
    for _ in thread_counts:
        for size in range(30):
            for retained in ([0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1]):
                assert_like_twins(np.arange(size) * 3 % 5, np.array(retained, dtype=bool))
