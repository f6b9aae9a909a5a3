"""Class list: keep the classes of a list.

Lists run from best to worst, except those that Jain et al. published, which are sorted by class id:
keep as many classes as the list holds.
"""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...stored import open_file, read_array, sha256_of_file
from ...validate import check_int_array
from ..inputs import as_array, count_in
from ..scores import Scores
from . import Method

if TYPE_CHECKING:
    from ...beton import BetonIndex

_MOST_BYTES = 1 << 24  # of a text: its entries take some times its memory
_BREAKS = re.compile(r"[\s,;]+")


def class_list(
    classes: Any,
    beton: "int | str | os.PathLike[str] | BetonIndex",
    *,
    column: str | int | None = None,
    exclude: bool = False,
    label_field: str = "label",
) -> Scores:
    """Score classes by a list: 1 for classes to keep, 0 for the others.

    If the budget differs from the list's length, the order of the list decides: a list of classes
    to keep starts with the best, a list of classes to exclude with the worst. Classes that are not
    listed are ranked by their ids. The lists of Jain et al. (MadryLab/data-transfer,
    `class_exclusion_files_handpicked`) are sorted by class id: choose a budget of their length.

    Args:
        classes: file of class ids in `[0, C)`: .npy `(K,)`, or text with ids separated by commas,
            spaces or line breaks, or a table such as CSV. The first line of text may be a header.
            In Python also an array `(K,)`.
        beton: source beton. In Python also its number of classes C.
        column: column of a table that holds the ids: its name in the header, or its number from 0.
        exclude: the list holds the classes to exclude, worst first.
        label_field: integer field with the class ids.

    >>> class_list([3, 1], 4).ranking(), class_list([3, 1], 4, exclude=True).ranking()
    (array([3, 1, 0, 2]), array([0, 2, 1, 3]))
    """
    num_classes, about = count_in(beton, "class", label_field)
    if isinstance(classes, str | os.PathLike):
        about["list_sha256"] = sha256_of_file(classes)
        listed = _read(classes, num_classes, column)
    else:
        listed = _checked(classes, num_classes)
    scores, tie_break = np.full(num_classes, float(exclude)), np.zeros(num_classes)
    scores[listed] = float(not exclude)
    places = np.arange(len(listed), dtype=np.float64)
    tie_break[listed] = places if exclude else -places
    return Scores(
        scores=scores,
        tie_break=tie_break,
        method="class_list",
        provenance={"listed": len(listed), "exclude": bool(exclude), **about},
    )


def _read(
    path: str | os.PathLike[str], num_classes: int, column: str | int | None
) -> NDArray[np.int64]:
    try:
        with open_file(path) as stream:
            content = stream.read(_MOST_BYTES + 1)
        if content.startswith(b"\x93NUMPY"):
            if column is not None:
                raise ValueError("a .npy file has no `column`")
            return _checked(read_array(path), num_classes)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"its text has more than {_MOST_BYTES} bytes")
        numbers = _numbers(content.decode("utf-8-sig"), column)
        return _checked(np.array(numbers, dtype=np.int64), num_classes)
    except (ValueError, TypeError, OverflowError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} is not a list of class ids: {error}") from error


def _checked(classes: Any, num_classes: int) -> NDArray[np.int64]:
    ids = check_int_array("classes", as_array(classes), below=num_classes, distinct=True)
    if not ids.size:
        raise ValueError("`classes` must hold at least one class id; got none.")
    return ids


def _numbers(text: str, column: str | int | None) -> list[int]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if column is not None:
        return [int(entry) for entry in _column(lines, column)]
    rows = [[entry.strip("\"'") for entry in _BREAKS.split(line) if entry] for line in lines]
    headed = bool(rows and rows[0] and not _is_number(rows[0][0]))
    rows = rows[headed:]
    widths = {len(row) for row in rows}
    # A list has one line, one id per line, or lines of different lengths. All else is a table.
    if max(widths, default=1) > 1 and (headed or (len(rows) > 1 and len(widths) == 1)):
        raise ValueError(f"a table needs `column`; its first line is {lines[0]!r}")
    return [int(entry) for row in rows for entry in row]


def _column(lines: Sequence[str], column: str | int) -> list[str]:
    first = lines[0] if lines else ""
    mark = next((mark for mark in ",;\t" if mark in first), " ")
    rows = list(csv.reader(lines, delimiter=mark, skipinitialspace=True))
    names = [name.strip() for name in rows[0]] if rows else []
    headed = not all(map(_is_number, names))
    if isinstance(column, str):
        if headed and names.count(column) == 1:
            column = names.index(column)
        elif column.isdecimal():
            column = int(column)
        else:
            raise ValueError(f"no single column {column!r} among {names}")
    if not 0 <= column < len(names) or any(len(row) <= column for row in rows):
        raise ValueError(f"some lines have no column {column} (counted from 0), see {first!r}")
    return [row[column] for row in rows[headed:]]


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True


METHOD = Method(
    function=class_list,
    flags={
        "classes": Path,
        "beton": Path,
        "column": str | None,
        "exclude": bool,
        "label_field": str,
    },
    units=("class",),
    reference="[Jain et al. 2023](https://arxiv.org/abs/2207.05739)",
)
