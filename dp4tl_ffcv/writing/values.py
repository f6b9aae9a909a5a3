"""Check that a field stores a value as it is.

ffcv's fields store what numpy makes of a value: 1 for 1.7 and for "1", and the bytes of an array of
another type or shape.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ffcv.fields import (
    BytesField,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    TorchTensorField,
)
from numpy.typing import NDArray

from ..beton.descriptors import can_be_loaded

_INTEGERS = np.iinfo(np.int64)


def storable(field: Any, value: Any) -> Any:
    """Return `value`, a number as int or float, if `field` stores all of it.

    A field of another class than ffcv's own gets any value.

    Raises:
        TypeError: the field cannot store values of this type.
        ValueError: the field would store another value.
    """
    check = _CHECKS.get(type(field))
    return check(field, value) if check else value


def check_arrays(name: str, field: Any) -> None:
    """Raise ValueError if `field` holds arrays that ffcv writes but cannot read."""
    if type(field) in (NDArrayField, TorchTensorField):
        dtype, shape = field.dtype, tuple(field.shape)
        if not can_be_loaded(dtype, shape):
            raise ValueError(
                f"ffcv cannot read arrays of type {dtype} and shape {shape}. Give the field "
                f"{name!r} another type or shape."
            )


def _integer(_: Any, value: Any) -> int:
    number = _number(value, "an integer field")
    if isinstance(number, float) and not number.is_integer():
        raise ValueError(f"an integer field cannot hold {number}")
    if not _INTEGERS.min <= number <= _INTEGERS.max:
        raise ValueError(f"an integer field has 64 bits, too few for {number}")
    return int(number)


def _float(_: Any, value: Any) -> float:
    number = _number(value, "a float field")
    try:
        stored = float(number)
    except OverflowError:
        stored = math.nan
    if isinstance(number, int) and stored != number:
        raise ValueError(f"a float field has 64 bits, too few for {number}")
    return stored


def _number(value: Any, where: str) -> int | float:
    """Return a number, or the one in an array or tensor without dimensions, as int or float."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, int | float):
        raise TypeError(f"{where} holds numbers, not {_described(value)}")
    return value


def _bytes(_: Any, value: Any) -> NDArray[np.uint8]:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 1:
        raise TypeError(
            f"a bytes field holds uint8 arrays (N,), not {_described(value)}; "
            "np.frombuffer(data, np.uint8) makes one of bytes"
        )
    return value


def _json(_: Any, value: Any) -> Any:
    json.dumps(value, allow_nan=False)  # the reader of another program may not know NaN
    return value


def _array(field: Any, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"an array field holds numpy arrays, not {_described(value)}")
    return _same(field, value, value)


def _tensor(field: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray) or not callable(getattr(value, "numpy", None)):
        raise TypeError(f"a tensor field holds torch tensors, not {_described(value)}")
    return _same(field, value, value.numpy())


def _same(field: Any, value: Any, array: NDArray[Any]) -> Any:
    if (array.dtype, array.shape) != (field.dtype, tuple(field.shape)):
        raise ValueError(
            f"the field holds {field.dtype} arrays of shape {tuple(field.shape)}, not "
            f"{_described(value)}"
        )
    return value


def _described(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r:.40}"


_CHECKS: dict[type, Callable[[Any, Any], Any]] = {
    IntField: _integer,
    FloatField: _float,
    BytesField: _bytes,
    JSONField: _json,
    NDArrayField: _array,
    TorchTensorField: _tensor,
}
