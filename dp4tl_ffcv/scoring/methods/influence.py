"""Class influences of Jain et al., from given runs, and the class lists that they published."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from ...kernels.checks import as_labels
from ...validate import check_int
from ..scores import Scores

_BLOCK_BYTES = 1 << 26  # of float64 outcomes at a time
_NPY = b"\x93NUMPY"  # that every .npy file starts with
_BREAKS = re.compile(r"[\s,;]+")


def class_influences(outcomes: ArrayLike, included: ArrayLike) -> NDArray[np.float64]:
    """Return the influence of each source class on each target image.

    `I[c, j] = mean_{r: included[r, c]} o[r, j] - mean_{r: not included[r, c]} o[r, j]` with o the
    outcomes of runs r, each pretrained on a random half of the classes, say, and finetuned on the
    target. (Jain et al. 2023, arXiv 2207.05739.)

    Args:
        outcomes: what each run says of each target image `(R, n)`, higher is better: logit or
            margin of its class, or whether it is right; bool, int or float. Memory maps are read
            block by block.
        included: which classes each run was pretrained on, bool `(R, C)`.

    Returns:
        Influences `(C, n)`, summed in float64 in the order of runs on one thread.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: shapes do not fit, an outcome is not finite, or a class is in every run or none.
    """
    values, masks = _runs(outcomes, included)
    sums = np.zeros((masks.shape[1], values.shape[1]), dtype=np.float64)
    total = np.zeros(values.shape[1], dtype=np.float64)
    step = max(1, _BLOCK_BYTES // (8 * values.shape[1]))
    with threadpool_limits(1, user_api="blas"):  # fixes the bits
        for start in range(0, len(values), step):
            block = values[start : start + step].astype(np.float64)
            if not np.isfinite(block).all():
                raise ValueError(
                    "`outcomes` must be finite; got NaN or inf. Leave out the runs that failed."
                )
            sums += masks[start : start + step].T.astype(np.float64) @ block
            total += block.sum(axis=0)
    number = masks.sum(axis=0)[:, None]
    influences: NDArray[np.float64] = sums / number - (total - sums) / (len(masks) - number)
    return influences


def class_influence(
    outcomes: ArrayLike, included: ArrayLike, *, provenance: Mapping[str, Any] | None = None
) -> Scores:
    """Score source classes by their influence on the target.

    `s[c] = mean_j I[c, j]`, with I of `class_influences`, whose arguments these are.

    Args:
        outcomes: `(R, n)`.
        included: `(R, C)`.
        provenance: kept with the scores.

    Raises:
        TypeError: as `class_influences`.
        ValueError: as `class_influences`.

    >>> class_influence([[0.9], [0.5], [0.8]], [[True, False], [False, True], [True, True]]).scores
    array([ 0.35, -0.25])
    """
    values, masks = _runs(outcomes, included)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        # The mean over images and the difference over runs may change places.
        of_runs = values.mean(axis=1, keepdims=True, dtype=np.float64)
    scores = class_influences(of_runs, masks)[:, 0]
    about = {"runs": len(values), "outcomes": values.shape[1]}
    return Scores(
        scores=scores,
        tie=np.zeros_like(scores),
        method="influence",
        provenance={**about, **(provenance or {})},
    )


def read_class_list(
    path: str | os.PathLike[str], num_classes: int, *, column: str | int | None = None
) -> NDArray[np.int64]:
    """Read a list of class ids, such as those that Jain et al. published.

    (MadryLab/data-transfer, `class_exclusion_files_handpicked/TARGET_keep.npy` and
    `TARGET_exclude.npy`.) A text file holds ids between commas, spaces or line breaks, or a table,
    such as CSV. A line of names may come first.

    Args:
        path: of a `.npy` file of integers `(K,)`, or of text.
        num_classes: C of the source; ids lie in `[0, C)`.
        column: of a table of several columns, the one of the ids: its name in the first line, or
            its number from 0 on.

    Returns:
        Ids `(K,)` in the order of the file. A table is not sorted: if it is a ranking, its rows
        must come with the best first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no list of different class ids, or a table without a `column`.
    """
    num_classes = check_int("num_classes", num_classes, 1)
    try:
        with open(path, "rb") as stream:
            is_npy = stream.read(len(_NPY)) == _NPY
        if is_npy and column is not None:
            raise ValueError("`column` must be left out with .npy, which has no table.")
        if is_npy:
            ids = np.load(path, allow_pickle=False)
        else:
            ids = np.array(_numbers(Path(path).read_text("utf-8-sig"), column), dtype=np.int64)
        return _list_of_classes(ids, num_classes)
    except (ValueError, TypeError, EOFError, OverflowError, csv.Error) as error:
        raise ValueError(
            f"`path` must be a list of class ids, .npy or text; got {str(path)!r}: {error}"
        ) from error


def class_list_scores(
    ids: ArrayLike,
    num_classes: int,
    *,
    exclude: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Score classes by a list: 1 for those to keep, 0 for the others.

    Where the budget is not that of the list, its order decides: a list of classes to keep starts
    with the best, one of classes to exclude with the worst. Classes that are not on the list come
    in the order of their ids.

    The lists that Jain et al. published are in ascending order of the ids, which is no ranking:
    they mean something where as many classes are kept as they keep, and nowhere else.

    Args:
        ids: classes `(K,)`, such as `read_class_list` returns.
        num_classes: C.
        exclude: the list is of the classes to prune.
        provenance: kept with the scores.

    Raises:
        TypeError: the ids are not integers.
        ValueError: an id is out of range or listed twice, or there is none.

    >>> class_list_scores([3, 1], 4).ranking(), class_list_scores([3, 1], 4, exclude=True).ranking()
    (array([3, 1, 0, 2]), array([0, 2, 1, 3]))
    """
    num_classes = check_int("num_classes", num_classes, 1)
    listed = _list_of_classes(ids, num_classes)
    scores, tie = np.full(num_classes, float(exclude)), np.zeros(num_classes)
    scores[listed] = float(not exclude)
    places = np.arange(len(listed), dtype=np.float64)
    tie[listed] = places if exclude else -places
    about = {"listed": len(listed), "exclude": bool(exclude)}
    return Scores(
        scores=scores, tie=tie, method="class_list", provenance={**about, **(provenance or {})}
    )


def _runs(outcomes: ArrayLike, included: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    values, masks = np.asarray(outcomes), np.asarray(included)
    if masks.dtype != np.bool_:
        raise TypeError(
            f"`included` must be bool; got dtype {masks.dtype}. Say which classes each run had."
        )
    if values.dtype.kind not in "biuf":
        raise TypeError(f"`outcomes` must be numbers; got dtype {values.dtype}. Convert them.")
    if values.ndim != 2 or masks.ndim != 2 or len(values) != len(masks):
        raise ValueError(
            f"`outcomes` and `included` must have shapes (R, n) and (R, C); got {values.shape} and "
            f"{masks.shape}. Pass one row of each per run."
        )
    if not values.size or not masks.size:
        raise ValueError(
            f"`outcomes` and `included` must not be empty; got shapes {values.shape} and "
            f"{masks.shape}. Pass finished runs."
        )
    number = masks.sum(axis=0)
    unknown = np.flatnonzero((number == 0) | (number == len(masks)))
    if unknown.size:
        raise ValueError(
            f"`included` must have each class in some runs and not in others; got class "
            f"{unknown[0]} in {number[unknown[0]]} of {len(masks)}. Add runs, or leave out the "
            "class."
        )
    return values, masks


def _numbers(text: str, column: str | int | None) -> list[int]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if column is not None:
        return [int(entry) for entry in _column(lines, column)]
    rows = [[entry.strip("\"'") for entry in _BREAKS.split(line) if entry] for line in lines]
    headed = bool(rows and rows[0] and not _is_whole(rows[0][0]))
    rows = rows[headed:]
    widths = {len(row) for row in rows}
    # Lines of a list differ in their lengths, or hold one id each, or there is one line.
    if max(widths, default=1) > 1 and (headed or (len(rows) > 1 and len(widths) == 1)):
        raise ValueError(
            f"a table must come with the `column` of its ids; got {lines[0]!r} first. Name the "
            "column, or its number from 0 on; a list may have one id on each line."
        )
    return [int(entry) for row in rows for entry in row]


def _column(lines: Sequence[str], column: str | int) -> list[str]:
    """Return the entries of one column of a table, without its name."""
    first = lines[0] if lines else ""
    mark = next((mark for mark in ",;\t" if mark in first), " ")
    rows = list(csv.reader(lines, delimiter=mark, skipinitialspace=True))
    names = [name.strip() for name in rows[0]] if rows else []
    headed = not all(map(_is_number, names))
    if isinstance(column, str):
        if names.count(column) != 1 or not headed:
            raise ValueError(f"`column` must be one of {names}; got {column!r}. Name one.")
        column = names.index(column)
    if not 0 <= column < len(names) or any(len(row) <= column for row in rows):
        raise ValueError(
            f"`column` must be one that every line has; got {column} for {first!r}. Count from 0."
        )
    return [row[column] for row in rows[headed:]]


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True


def _is_whole(entry: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", entry, re.ASCII) is not None


def _list_of_classes(ids: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    classes = as_labels(ids, num_classes, "ids")
    if not classes.size:
        raise ValueError("`ids` must hold at least one class; got none. Check the list.")
    values, counts = np.unique(classes, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"`ids` must hold each class once; got {values[counts > 1][0]} again. Check the list."
        )
    return classes
