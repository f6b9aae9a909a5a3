"""Shared argument checks: accepted values, rejected values and their errors."""

import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import StaleArtifactError
from dp4tl_ffcv.validate import (
    check_choice,
    check_class_names,
    check_fingerprint,
    check_fraction,
    check_int,
    check_int_array,
    check_ints,
    check_number,
    check_range,
    parse_bytes,
    resolve_num_workers,
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (check_int("n", np.uint8(3), 3, 3), 3),
        (check_int("n", -5), -5),
        (check_ints("n", np.array([1, 2]), 2, at_least=1), (1, 2)),
        (check_number("n", 1, above=0, at_most=1), 1.0),
        (check_fraction("n", 1), 1.0),
        (check_fraction("n", np.float32(0.5)), 0.5),
        (check_range("n", [0.5, 1], at_most=1), (0.5, 1.0)),
        (check_choice("n", "b", ("a", "b")), "b"),
        (parse_bytes("n", np.int64(7)), 7),
        (parse_bytes("n", "64GiB"), 64 << 30),
        (parse_bytes("n", " 500 mb "), 500_000_000),
        (parse_bytes("n", "1.5T"), 1_500_000_000_000),
        (resolve_num_workers(0, at_least=0), 0),
    ],
)
def test_good_values_are_returned_as_plain_types(found: Any, expected: Any) -> None:
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("check", "arguments", "error", "match"),
    [
        (check_int, (True,), TypeError, "`n` must be an int; got True"),
        (check_int, (1.0,), TypeError, "`n` must be an int"),
        (check_int, (0, 1), ValueError, "`n` must be at least 1; got 0"),
        (check_int, (2, None, 1), ValueError, "`n` must be at most 1; got 2"),
        (check_int, (4, 1, 3), ValueError, r"`n` must be in \[1, 3\]; got 4"),
        (check_ints, ((1,), 2), ValueError, "`n` must be 2 ints"),
        (check_ints, (1, 1), ValueError, "`n` must be 1 ints"),
        (check_int_array, ([True],), TypeError, r"`n` must be integers; .*np\.flatnonzero"),
        (check_int_array, ([0.0],), TypeError, "`n` must be integers; got dtype float64"),
        (check_int_array, ([[1]],), ValueError, r"`n` must have shape \(N,\); got \(1, 1\)"),
        (check_fraction, ("1",), TypeError, r"`n` must be a fraction in \(0, 1\]"),
        (check_fraction, (math.nan,), ValueError, r"`n` must be a fraction in \(0, 1\]"),
        (check_fraction, (0,), ValueError, r"`n` must be a fraction in \(0, 1\]; got 0"),
        (check_range, ((0, 1),), ValueError, r"`n` must be \(low, high\) with 0 < low <= high;"),
        (check_choice, ("c", ("a", "b")), ValueError, "`n` must be one of a, b; got 'c'"),
        (parse_bytes, ("many",), ValueError, "`n` must be bytes, or text such as 64GiB"),
        (parse_bytes, ("9" * 400,), ValueError, "`n` must be bytes"),
        (parse_bytes, (0,), ValueError, "`n` must be bytes"),
        (parse_bytes, (True,), ValueError, "`n` must be bytes"),
    ],
)
def test_bad_values_are_rejected(
    check: Any, arguments: tuple[Any, ...], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        check("n", *arguments)


def test_an_integer_too_large_for_a_float_is_rejected() -> None:
    with pytest.raises(ValueError, match="`n` has 401 digits"):
        check_number("n", -(10**400))


@pytest.mark.parametrize(
    ("bounds", "value", "match"),
    [
        ({"above": 0}, 0, "above 0; got 0"),
        ({"at_least": 0, "at_most": 1}, 2, "at least 0 and at most 1; got 2"),
        ({"at_least": 0}, math.nan, "at least 0; got nan"),
    ],
)
def test_numbers_out_of_bounds_are_rejected(
    bounds: dict[str, float], value: float, match: str
) -> None:
    with pytest.raises(ValueError, match=f"`n` must be {match}"):
        check_number("n", value, **bounds)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert resolve_num_workers(None) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert resolve_num_workers(None) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    assert resolve_num_workers(None) == 1
    with pytest.raises(ValueError, match="`num_workers` must be at least 1; got 0"):
        resolve_num_workers(0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 3], {"below": 3}, r"^`n` must lie in \[0, 3\); got values from 0 to 3"),
        ([-1, 1], {"below": 3, "hint": " Hint."}, r"^`n` must .* got values from -1 to 1\. Hint\."),
        (np.array([1 << 63], np.uint64), {"below": 3}, r"^`n` must lie in \[0, 3\)"),
        ([2, 1, 2], {"distinct": True}, "^`n` must be distinct; got 2 more than once"),
    ],
)
def test_arrays_of_wrong_integers_are_rejected(values: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_int_array("n", values, **options)


@pytest.mark.parametrize("values", [[], [2, 0], np.array([5, 4, 3], np.uint8)[::2]])
def test_arrays_of_integers_are_returned_as_contiguous_int64(values: Any) -> None:
    array = check_int_array("n", values, below=6, distinct=True)
    assert array.tolist() == list(values)
    assert array.dtype == np.int64
    assert array.flags.c_contiguous


def test_only_an_artifact_of_another_beton_is_stale() -> None:
    for expected in ("ab" * 32, None):  # None: made of bare arrays
        check_fingerprint("selection", expected, "ab" * 32, Path("a.beton"))
    message = r"^`scores` was made for another beton, not for 'a\.beton'"
    for expected in ("", "ab" * 32):
        with pytest.raises(StaleArtifactError, match=message):
            check_fingerprint("scores", expected, "cd" * 32, Path("a.beton"))


@pytest.mark.parametrize(
    ("names", "others", "same"),
    [
        (("ant", "bee"), ("ant", "bee", "cat"), True),
        (("ant", "bee"), ("ant", "cat"), False),
        (("cafe\u0301",), ("caf\u00e9",), True),
        ((), ("ant",), True),
        (("0", "1"), ("ant", "bee"), True),
        (("1", "0"), ("ant", "bee"), False),
        (("tench", "crane (n02012849)"), ("tench, Tinca tinca", "crane"), True),
        (("maillot, tank suit",), ("tank suit",), True),
        (("maillot, tank suit",), ("tank",), False),
        (("a, b",), ("b, a",), False),
        (("tench",), ("n01440764",), True),
        (("n01440764",), ("n01443537",), False),
        (("n01440764", "bee"), ("ant", "bee"), False),
    ],
)
def test_class_names_are_compared_as_far_as_both_are_known(
    names: tuple[str, ...], others: tuple[str, ...], same: bool
) -> None:
    for one, other in ((names, others), (others, names)):
        with nullcontext() if same else pytest.raises(StaleArtifactError, match=r"in here.*there"):
            check_class_names(one, other, where="here", elsewhere="there", advice="Do.")
