"""Argument checks shared by the whole library. Each returns the value as its plain type.

They raise TypeError for a value of the wrong type, and ValueError for a value out of bounds.
"""

import math
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import StaleArtifactError
from .torchrun import torchrun

_BYTES = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")
_ADDED_WNID = re.compile(r" \(n\d{8}\)$")  # by `dp4tl write imagenet`, to tell two cranes apart
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def check_int(
    name: str, value: Any, at_least: int | None = None, at_most: int | None = None
) -> int:
    """Return `value` as an int within the bounds, both inclusive."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an int; got {value!r}.")
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        raise ValueError(f"`{name}` must be {_bounds(at_least, at_most)}; got {value}.")
    return int(value)


def check_ints(
    name: str, values: Any, count: int, at_least: int | None = None, at_most: int | None = None
) -> tuple[int, ...]:
    """Return a sequence of `count` ints within the bounds as a tuple."""
    given = _as_tuple(values)
    if len(given) != count:
        raise ValueError(f"`{name}` must be {count} ints; got {values!r}.")
    return tuple(check_int(name, value, at_least, at_most) for value in given)


def check_int_array(
    name: str,
    values: ArrayLike,
    *,
    below: int | None = None,
    distinct: bool = False,
    hint: str = "",
) -> NDArray[np.int64]:
    """Return integers `(N,)` as contiguous int64; uint64 values from 2**63 on become negative.

    With `below`, values must lie in `[0, below)`; the error otherwise ends with `hint`.
    """
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":  # np.asarray([]) is float64
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        hint = " For a mask, pass np.flatnonzero(mask)." if array.dtype.kind == "b" else ""
        raise TypeError(f"`{name}` must be integers; got dtype {array.dtype}.{hint}")
    if array.ndim != 1:
        raise ValueError(f"`{name}` must have shape (N,); got {array.shape}.")
    if array.size and below is not None and (array.min() < 0 or array.max() >= below):
        raise ValueError(
            f"`{name}` must lie in [0, {below}); got values from {array.min()} to {array.max()}."
            f"{hint}"
        )
    if distinct and len(np.unique(array)) < len(array):
        found, counts = np.unique(array, return_counts=True)
        raise ValueError(f"`{name}` must be distinct; got {found[counts > 1][0]} more than once.")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as a float within the bounds; only `above` is exclusive."""
    bounds = [
        ("above", above, above is None or value > above),
        ("at least", at_least, at_least is None or value >= at_least),
        ("at most", at_most, at_most is None or value <= at_most),
    ]
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"`{name}` has {len(str(abs(value)))} digits, too many.") from None
    if math.isnan(number) or not all(holds for *_, holds in bounds):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound, _ in bounds if bound is not None)
        raise ValueError(f"`{name}` must be {wanted}; got {value}.")
    return number


def check_fraction(name: str, value: Any) -> float:
    """Return `value` as a float in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a fraction in (0, 1]; got {value!r}.")
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` must be a fraction in (0, 1]; got {value}.")
    return float(value)


def check_range(name: str, values: Any, at_most: float | None = None) -> tuple[float, float]:
    """Return `values` as floats (low, high) with `0 < low <= high <= at_most`."""
    given = _as_tuple(values)
    low, high = (float(value) for value in given) if len(given) == 2 else (math.nan, math.nan)
    if not 0 < low <= high < math.inf or (at_most is not None and high > at_most):
        bound = "" if at_most is None else f" <= {at_most:g}"
        raise ValueError(f"`{name}` must be (low, high) with 0 < low <= high{bound}; got {values}.")
    return low, high


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")
    return str(value)


def check_fingerprint(name: str, expected: str | None, found: str, beton: Path) -> None:
    """Raise StaleArtifactError unless the argument `name` was made for the beton.

    Args:
        name: the argument, which is a file or an object that was made for a beton.
        expected: fingerprint of that beton. None fits every beton: `name` was made of bare arrays.
        found: fingerprint of the file `beton`.
        beton: the file that the argument is used with.
    """
    if expected is not None and expected != found:
        raise StaleArtifactError(
            f"`{name}` was made for another beton, not for {str(beton)!r}. Pass that beton, or "
            f"make `{name}` for this one."
        )


def check_class_names(
    names: Sequence[str], others: Sequence[str], *, where: str, elsewhere: str, advice: str
) -> None:
    """Raise `StaleArtifactError` if a class id has different names in two lists of class names.

    Names are compared as far as both lists have them. An empty list stands for unknown names, and
    so does one that has only class ids, or only WNIDs if the other list has none. Of the synonyms
    of ImageNet (`tench, Tinca tinca`), a list may have one.

    Args:
        names: name of each class id `(C,)`.
        others: name of each class id in the other place.
        where: place of `names`, for the error.
        elsewhere: place of `others`, for the error.
        advice: what to do, for the error.
    """
    if any(_are_ids(each) for each in (names, others)) or _are_wnids(names) != _are_wnids(others):
        return
    for number, (one, other) in enumerate(zip(names, others, strict=False)):
        if one != other and not _are_same(one, other):
            raise StaleArtifactError(
                f"class {number} is {one!r} in {where}, but {other!r} in {elsewhere}. {advice}"
            )


def parse_bytes(name: str, value: Any) -> int:
    """Return a number of bytes from an int or from text such as `64GiB`, `500 MB` or `1.5T`."""
    if isinstance(value, str) and (found := _BYTES.fullmatch(value.strip())):
        number, unit, binary = found.groups()
        value = float(number) * (1024 if binary else 1000) ** _POWERS[unit.upper()]
        value = int(value) if np.isfinite(value) else 0
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < 1:
        raise ValueError(f"`{name}` must be bytes, or text such as 64GiB; got {value!r}.")
    return int(value)


def resolve_num_workers(num_workers: int | None, *, at_least: int = 1) -> int:
    """Return the number of workers of this process.

    Args:
        num_workers: number of workers. None uses all cores, shared among the processes that
            `torchrun` started on this machine.
        at_least: smallest number allowed. Pass 0 if the calling process can do the work.
    """
    if num_workers is None:
        return max(1, len(os.sched_getaffinity(0)) // torchrun().local_world_size)
    return check_int("num_workers", num_workers, at_least)


def _are_ids(names: Sequence[str]) -> bool:
    return list(names) == list(map(str, range(len(names))))


def _are_wnids(names: Sequence[str]) -> bool:
    return all(map(_WNID.fullmatch, names))


def _are_same(one: str, other: str) -> bool:
    # Copies by way of macOS hold accents as letters of their own.
    plain = (normalize("NFC", _ADDED_WNID.sub("", name)) for name in (one, other))
    short, long = sorted(plain, key=len)
    return short == long or ("," not in short and short in long.split(", "))


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list | np.ndarray) else ()


def _bounds(at_least: int | None, at_most: int | None) -> str:
    if at_most is None:
        return f"at least {at_least}"
    return f"at most {at_most}" if at_least is None else f"in [{at_least}, {at_most}]"
