"""Read pickles of dictionaries, lists, numbers, strings and byte arrays without running any code.

The pickle is scanned first, so that reading it takes memory and time in line with its size. numpy's
functions are replaced by objects that only record their arguments. Any other name is rejected.
"""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv.utils import scan_pickle

_NUMPY = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class _Recorded:
    """Arguments and state that a pickle gives to numpy's array or dtype."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _Recorded
        raise pickle.UnpicklingError(f"the pickle names {module}.{name}")


def read_dict(data: bytes) -> dict[Any, Any]:
    """Return a dictionary that Python 2 pickled. Strings are bytes; pass arrays to `byte_rows`.

    Raises:
        ValueError: the pickle is damaged, names another function, holds another type, or could
            take more time or memory than its size explains.
    """
    scan_pickle(data)
    try:
        value = _SafeUnpickler(io.BytesIO(data), encoding="bytes").load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise any exception
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(value, dict):
        raise ValueError(f"the pickle holds a {type(value).__name__}, not a dict")
    return value


def byte_rows(array: Any, width: int) -> NDArray[np.uint8]:
    """Return an array of `read_dict`, which must be uint8 of shape (N, width)."""
    state = array.state if isinstance(array, _Recorded) else None
    if not isinstance(state, tuple) or len(state) < 4:
        raise ValueError("not an array")
    shape, dtype, by_columns, data = state[-4:]
    dtypes = dtype.arguments[:1] if isinstance(dtype, _Recorded) else ()
    if dtypes not in ((b"u1",), ("u1",)) or not isinstance(data, bytes):
        raise ValueError("the array is not of dtype uint8")
    if len(data) % width or shape != (len(data) // width, width):
        raise ValueError(f"the array has shape {shape!s:.100} and {len(data)} bytes")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_columns else "C")
