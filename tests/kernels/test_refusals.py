"""Every kernel rejects bad arguments before compiled code runs."""

import math
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv.kernels import (
    class_histogram,
    class_members,
    class_sums,
    nearest_mean,
    resize_area,
)

INT64 = np.iinfo(np.int64)
BOXES = [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 5, 2), (0, 0, 2, 7), (3, 0, 2, 2), (0, 0, 0, 2)]
GOOD: dict[Any, dict[str, Any]] = {
    class_histogram: {"labels": [0, 1], "num_classes": 3},
    class_members: {"labels": [0, 1], "retained": [True, False, True]},
    class_sums: {"features": np.zeros((2, 2)), "labels": [0, 1], "num_classes": 3},
    nearest_mean: {"features": np.zeros((1, 2)), "means": np.zeros((1, 2))},
    resize_area: {"image": np.zeros((4, 6, 3), np.uint8), "size": (2, 2)},
}

COUNTING = (class_histogram, class_members, class_sums)
NAN, INF = math.nan, math.inf

# Kernels, the argument, bad values of it, and the error.
TABLE: list[tuple[tuple[Any, ...], str, list[Any], type[Exception], str]] = [
    (
        COUNTING,
        "labels",
        [[0.0, 1.0], [True, False], ["0", "1"], [None, None], [1j, 0j]],
        TypeError,
        "`labels` must be integers; got dtype",
    ),
    (
        COUNTING,
        "labels",
        [0, [[0, 1]], np.zeros((2, 0), dtype=int)],
        ValueError,
        r"`labels` must have shape \(N,\); got",
    ),
    (
        COUNTING,
        "labels",
        [[0, -1], [0, 3], [0, 2**62], [0, INT64.min], np.array([0, 2**64 - 1], dtype=np.uint64)],
        ValueError,
        r"`labels` must lie in \[0, 3\); got values from",
    ),
    ((class_members,), "labels", [[*[0] * 400_000, 3]], ValueError, r"must lie in \[0, 3\)"),
    ((class_sums,), "labels", [[], [0], [0] * 3], ValueError, "must have one entry per row"),
    (
        (class_histogram, class_sums),
        "num_classes",
        [0, -4, np.int64(0)],
        ValueError,
        "`num_classes` must be at least 1",
    ),
    (
        (class_histogram, class_sums),
        "num_classes",
        [2.0, True, "2", None, np.float32(3)],
        TypeError,
        "`num_classes` must be an int",
    ),
    ((class_members,), "retained", [[0, 1], [0.0], [None]], TypeError, "`retained` must be bool"),
    ((class_members,), "retained", [True, [[True]]], ValueError, r"must have shape \(C,\)"),
    ((class_members,), "retained", [np.zeros(0, bool)], ValueError, r"must lie in \[0, 0\)"),
    (
        (class_sums, nearest_mean),
        "features",
        [[[1, 2]], [[True]], [["a"]], [[1j]], [[None]]],
        TypeError,
        "`features` must be float16, float32 or float64",
    ),
    (
        (class_sums, nearest_mean),
        "features",
        [np.zeros(shape) for shape in ((), (2,), (1, 0), (1, 2, 1))],
        ValueError,
        r"`features` must have shape \(N, D\)",
    ),
    ((nearest_mean,), "features", [[[1e160] * 2]], ValueError, "`features` must be finite and at"),
    ((nearest_mean,), "means", [[[1, 2]]], TypeError, "`means` must be float16, float32 or"),
    ((nearest_mean,), "means", [np.zeros(2)], ValueError, r"`means` must have shape \(N, D\)"),
    ((nearest_mean,), "means", [np.zeros((1, 3))], ValueError, "must have as many columns"),
    ((nearest_mean,), "means", [[[NAN, 1.0]]], ValueError, "every row of `means` contains NaN"),
    (
        (nearest_mean,),
        "means",
        [[[0.0, INF], [1.0, 1.0]], [[0.0, -INF], [1.0, 1.0]], [[1e160] * 2]],
        ValueError,
        "`means` must be finite and at most",
    ),
    (
        (resize_area,),
        "image",
        [np.zeros((4, 4, 3), kind) for kind in (np.int8, np.uint16, np.float32, bool)],
        TypeError,
        "`image` must be uint8; got dtype",
    ),
    (
        (resize_area,),
        "image",
        [np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3))],
        ValueError,
        r"`image` must have shape \(H, W, 3\)",
    ),
    ((resize_area,), "size", [(), (2,), (2, 2, 2), 5, None], ValueError, "must be 2 ints; got"),
    ((resize_area,), "size", [(0, 2), (2, -1)], ValueError, "`size` must be at least 1; got"),
    ((resize_area,), "size", [(2.0, 2), (2, "2"), (True, 2)], TypeError, "must be an int; got"),
    ((resize_area,), "box", BOXES, ValueError, r"`box` must be .* inside 4 x 6 pixels; got"),
    ((resize_area,), "box", [(0, 0, 2)], ValueError, "`box` must be 4 ints; got"),
    ((resize_area,), "box", [(0, 0, 2, 2.0)], TypeError, "`box` must be an int; got"),
]


@pytest.mark.parametrize(
    ("kernel", "name", "value", "error", "match"),
    [
        pytest.param(kernel, name, value, error, match, id=f"{kernel.__name__}-{name}-{number}")
        for kernels, name, values, error, match in TABLE
        for kernel in kernels
        for number, value in enumerate(values)
    ],
)
def test_bad_arguments_are_rejected(
    kernel: Any, name: str, value: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        kernel(**{**GOOD[kernel], name: value})
