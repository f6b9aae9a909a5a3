"""Read a pickle of containers, numbers, strings and arrays of bytes without running any of it.

What a pickle asks to be called are stand-ins that do nothing but keep their arguments; any other
name in it is refused.
"""

import io
import pickle
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Inert:
    """Stands in for numpy's array and type: keeps what it is given, does nothing."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return _Inert
        raise pickle.UnpicklingError(f"a pickle that names {module}.{name}")


def read_dict(data: bytes) -> dict[Any, Any]:
    """Return the dictionary that Python 2 pickled; its strings are bytes, its arrays stand-ins.

    Raises:
        ValueError: the pickle is damaged, names anything else, or holds no dictionary.
    """
    try:
        value = _Reader(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises whatever its instructions lead to
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(value, dict):
        raise ValueError(f"a pickled {type(value).__name__}")
    return value


def byte_rows(array: Any, width: int) -> NDArray[np.uint8]:
    """Make the array (N, width) of bytes that a stand-in kept the parts of.

    Raises:
        ValueError: it is none, or of another type or shape.
    """
    state = array.state if isinstance(array, _Inert) else None
    if not isinstance(state, tuple) or len(state) < 4:
        raise ValueError("no array")
    shape, kind, by_columns, data = state[-4:]
    kinds = kind.arguments[:1] if isinstance(kind, _Inert) else ()
    if kinds not in ((b"u1",), ("u1",)) or not isinstance(data, bytes):
        raise ValueError("an array that is not of bytes")
    if len(data) % width or shape != (len(data) // width, width):
        raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_columns else "C")


T = TypeVar("T")


def list_of(kind: type[T], values: Any) -> list[T]:
    """Return `values`, which must be a list of `kind`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(values, list) or not all(isinstance(each, kind) for each in values):
        raise ValueError(f"no list of {kind.__name__}")
    return values
