"""Pickles of Python 2 are read as numpy reads them, and no code of a pickle is run."""

import contextlib
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.writers.support import python2
from writers.components.safe_unpickle import byte_rows, read_dict


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


ROWS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("array", [ROWS, np.asfortranarray(ROWS), ROWS[:0]])
def test_arrays_are_those_that_numpy_reads(array: NDArray[np.uint8]) -> None:
    data = python2({b"data": array, b"n": [1, 2]})
    with warnings.catch_warnings(action="ignore"):  # about the old name of numpy's module
        real = pickle.loads(data, encoding="bytes")
    ours = read_dict(data)
    np.testing.assert_array_equal(byte_rows(ours[b"data"], 4), real[b"data"])
    assert ours[b"n"] == real[b"n"]


@pytest.mark.parametrize(
    ("dtype", "width", "why"),
    [
        *((b"u1", width, r"shape \(3, 4\) and 12 bytes") for width in (3, 5, 6, 12)),
        (b"i1", 4, "not of dtype uint8"),
    ],
)
def test_an_array_of_another_type_or_width_is_refused(dtype: bytes, width: int, why: str) -> None:
    entry = read_dict(python2({b"data": ROWS}).replace(b"u1", dtype))
    with pytest.raises(ValueError, match=why):
        byte_rows(entry[b"data"], width)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"data": Call(getattr, "text", "upper")}, "names builtins.getattr|names __builtin__"),
        ({"data": Call(np.frombuffer, "12")}, "names numpy"),
        ({"data": np.zeros(3)}, "names numpy"),  # a newer numpy has other names
        ([1, 2], "the pickle holds a list, not a dict"),
    ],
)
def test_other_content_of_a_pickle_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_dict(pickle.dumps(value, 2))


def test_a_pickle_cannot_make_numpy_create_a_dtype() -> None:
    recorded = read_dict(pickle.dumps({"data": Call(np.dtype, "O")}, 2))["data"]
    assert not isinstance(recorded, np.dtype)
    with pytest.raises(ValueError, match="not an array"):
        byte_rows(recorded, 4)


def test_a_pickle_that_would_take_much_memory_is_refused_first() -> None:
    with pytest.raises(ValueError, match="stores object 134217727 after 0 others"):
        read_dict(b"\x80\x02}r\xff\xff\xff\x07.")


@given(st.binary(max_size=200) | st.builds(bytes.__add__, st.just(b"\x80\x02"), st.binary()))
def test_any_bytes_give_a_dictionary_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(read_dict(data), dict)


def test_a_changed_byte_gives_an_array_of_the_same_shape_or_an_error() -> None:
    whole = python2({b"data": np.zeros((40, 4), dtype=np.uint8)})
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0x55
        with contextlib.suppress(ValueError):
            assert byte_rows(read_dict(bytes(data)).get(b"data"), 4).shape == (40, 4)


def test_a_lack_of_memory_is_no_damage_of_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("writers.components.safe_unpickle._SafeUnpickler", fail)
    with pytest.raises(MemoryError):
        read_dict(pickle.dumps({}, 2))
