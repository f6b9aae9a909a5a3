"""Argument checks that every kernel runs before it enters compiled code."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_num_classes(num_classes: int) -> int:
    """Return `num_classes` as a positive int, or raise ValueError or TypeError."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)):
        raise TypeError(
            f"`num_classes` must be an int; got {num_classes!r}. Pass the number of classes."
        )
    if num_classes < 1:
        raise ValueError(
            f"`num_classes` must be at least 1; got {num_classes}. Pass the number of classes."
        )
    return int(num_classes)


def as_labels(labels: ArrayLike, num_classes: int, name: str = "labels") -> NDArray[np.int64]:
    """Return `labels` as contiguous int64 `(N,)` with every value in `[0, num_classes)`.

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shape is not `(N,)` or a label is out of range.
    """
    ids = as_any_labels(labels, name)
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
        raise out_of_range(labels, num_classes, name)
    return ids


def as_any_labels(labels: ArrayLike, name: str = "labels") -> NDArray[np.int64]:
    """Return `labels` as contiguous int64 `(N,)`, whatever their values; those of 2**63 on are < 0.

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shape is not `(N,)`.
    """
    array = np.asarray(labels)
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"`{name}` must be integers; got dtype {array.dtype}. Convert class ids to int64."
        )
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must have shape (N,); got {array.shape}. Pass one class id per sample."
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def out_of_range(labels: ArrayLike, num_classes: int, name: str = "labels") -> ValueError:
    """Return the error that says that labels are not in `[0, num_classes)`."""
    array = np.asarray(labels)
    return ValueError(
        f"`{name}` must lie in [0, {num_classes}); got values from {array.min()} to "
        f"{array.max()}. Check `num_classes` or the labels."
    )


def as_features(features: ArrayLike, name: str = "features") -> NDArray[Any]:
    """Return `features` as a contiguous `(N, D)` array of float16, float32 or float64.

    Raises:
        TypeError: the features are not floating point.
        ValueError: the shape is not `(N, D)` with D >= 1.
    """
    array = np.asarray(features)
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"`{name}` must be float16, float32 or float64; got dtype {array.dtype}. "
            "Convert them first."
        )
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(
            f"`{name}` must have shape (N, D) with D >= 1; got {array.shape}. "
            "Pass one row per sample."
        )
    return np.ascontiguousarray(array)


def as_ints(
    values: Sequence[int], name: str, count: int, least: int = -(1 << 63), most: int = 1 << 53
) -> tuple[int, ...]:
    """Return `values` as `count` ints in `[least, most]`, or raise TypeError or ValueError."""
    given = tuple(values) if isinstance(values, (tuple, list, np.ndarray)) else ()
    if len(given) != count:
        raise ValueError(f"`{name}` must hold {count} ints; got {values!r}. Pass as many.")
    for value in given:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"`{name}` must hold ints; got {values!r}. Pass whole numbers.")
        if not least <= value <= most:
            raise ValueError(
                f"`{name}` must lie in [{least}, {most}]; got {value}. Pass another number."
            )
    return tuple(int(value) for value in given)
