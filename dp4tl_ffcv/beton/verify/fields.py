"""Whether the extents of a beton are what its fields' records say, without an object per sample."""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import format
from ..tables import FieldInfo, Tables
from .allocations import Problem, Problems, is_inside

STORED_IMAGE = np.dtype(
    [
        ("sample_id", "<i8"),
        ("ptr", "<u8"),
        ("size", "<u8"),
        ("mode", "<u1"),
        ("height", "<u2"),
        ("width", "<u2"),
    ]
)

# How ffcv describes the arrays of a field: its shape, ended by zeros, and the length of the numpy
# type, which follows as JSON.
_ARRAYS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])


def check_fields(tables: Tables, problems: Problems) -> NDArray[Any]:
    """Look at what the fields keep of each sample, and whether its extents are as they say.

    Returns:
        The images that can be decoded, as far as the tables go: `STORED_IMAGE` `(n,)`.
    """
    finder = _Finder(tables)
    pointing: list[NDArray[np.int64]] = []
    images = [np.zeros(0, dtype=STORED_IMAGE)]
    for part, descriptor in zip(tables.fields, tables.descriptors, strict=True):
        column = tables.metadata[part.column]
        if part.kind == "int" and part.name == "label":
            _check_labels(column, problems)
        for places in format.pointers(column, part.kind):
            found = _Found(finder, places)
            pointing.append(found.keys[found.own])
            _check_places(part, places, found, problems)
            if part.kind == "rgb_image":
                whole = _check_images(part, column, found, problems)
                whole &= is_inside(tables, places, found.largest)
                images.append(_stored_images(column, found.largest, whole))
            elif part.kind != "custom":
                expected = _expected_sizes(part, column, descriptor, problems)
                if expected is not None:
                    _check_sizes(part, found, found.own, expected, problems)
    if not any(part.kind == "custom" for part in tables.fields):
        finder.check_unused(pointing, problems)
    return np.concatenate(images)


class _Finder:
    """Finds extents by place and sample, which make a key.

    More than one extent may have a key: ffcv's writer gives empty bytes the place of what comes
    next.
    """

    def __init__(self, tables: Tables) -> None:
        self.num_samples = len(tables.metadata)
        owned = tables.allocations[tables.allocations["sample_id"] < self.num_samples]
        self.places, groups = np.unique(owned["ptr"], return_inverse=True)
        keys = groups * self.num_samples + owned["sample_id"].astype(np.int64)
        order = np.lexsort((owned["size"], keys))
        self.keys: NDArray[np.int64] = keys[order]
        self.rows = owned[order]

    def check_unused(self, pointing: list[NDArray[np.int64]], problems: Problems) -> None:
        """Look for extents beyond those that the keys `pointing` ask for."""
        wanted = np.sort(np.concatenate([self.keys[:0], *pointing]))
        if np.array_equal(wanted, self.keys):
            return
        keys, first, counts = np.unique(self.keys, return_index=True, return_counts=True)
        asked = np.searchsorted(wanted, keys, side="right") - np.searchsorted(wanted, keys)

        def describe(at: int) -> tuple[int, str]:
            sample_id, ptr, size = self.rows[first[at]].tolist()
            return sample_id, f"no field points to its extent of {size} bytes at byte {ptr}"

        problems.add_rows("unused", counts > asked, describe)


class _Found:
    """What a finder has at the place of each sample, `(N,)` each."""

    def __init__(self, finder: _Finder, places: NDArray[np.uint64]) -> None:
        if not len(finder.keys):
            self.somewhere = self.own = np.zeros(len(places), dtype=np.bool_)
            self.keys = np.zeros(len(places), dtype=np.int64)
            self.smallest = self.largest = np.zeros(len(places), dtype=np.uint64)
            return
        groups = np.minimum(np.searchsorted(finder.places, places), len(finder.places) - 1)
        self.somewhere = finder.places[groups] == places
        self.keys = groups * finder.num_samples + np.arange(len(places))
        first = np.minimum(np.searchsorted(finder.keys, self.keys), len(finder.keys) - 1)
        last = np.maximum(np.searchsorted(finder.keys, self.keys, side="right") - 1, 0)
        self.own = self.somewhere & (finder.keys[first] == self.keys)
        self.smallest = finder.rows["size"][first]
        self.largest = finder.rows["size"][last]


def _check_labels(column: NDArray[Any], problems: Problems) -> None:
    problems.add_rows("label", column < 0, lambda i: (i, f"its label is {column[i]}"))


def _check_places(
    part: FieldInfo, places: NDArray[np.uint64], found: _Found, problems: Problems
) -> None:
    lost = ~found.somewhere
    if part.kind == "custom":
        lost &= places != 0  # such a field may mean by it that a sample has no bytes
    else:
        problems.add_rows(
            "pointer",
            found.somewhere & ~found.own,
            lambda i: (i, f"{part.name!r} points to byte {places[i]}: an extent of another sample"),
        )
    problems.add_rows(
        "pointer",
        lost,
        lambda i: (i, f"{part.name!r} points to byte {places[i]}, where no extent starts"),
    )


def _check_images(
    part: FieldInfo, column: NDArray[Any], found: _Found, problems: Problems
) -> NDArray[np.bool_]:
    """Check records and sizes, and return which samples have an image that can be decoded."""
    is_known = np.isin(column["mode"], list(format.IMAGE_MODES))
    problems.add_rows(
        "image",
        ~is_known,
        lambda i: (i, f"{part.name!r} has mode {column['mode'][i]}, neither 0 (jpg) nor 1 (raw)"),
    )
    has_sides = (column["height"] > 0) & (column["width"] > 0)
    problems.add_rows(
        "image",
        ~has_sides,
        lambda i: (i, f"{part.name!r} is {column['height'][i]} x {column['width'][i]} pixels"),
    )
    pixels = 3 * column["height"].astype(np.uint64) * column["width"]
    is_jpeg = column["mode"] == 0  # of any size, but not empty
    expected = np.where(is_jpeg, np.maximum(found.largest, 1), pixels)
    return _check_sizes(part, found, found.own & is_known & has_sides, expected, problems)


def _expected_sizes(
    part: FieldInfo, column: NDArray[Any], descriptor: Any, problems: Problems
) -> NDArray[np.uint64] | None:
    """Return the bytes that each sample's extent must have, or None where the file is unclear."""
    if column.dtype.names:
        return np.asarray(column["size"])
    try:
        return np.full(len(column), _array_bytes(descriptor["arguments"]), dtype=np.uint64)
    except (ValueError, TypeError, OverflowError) as error:
        message = f"type and shape of the arrays in {part.name!r} cannot be read: {error}"
        problems.add(Problem("tables", None, message))
        return None


def _array_bytes(arguments: NDArray[np.uint8]) -> int:
    """Return the bytes of each array of a field, from the arguments in its descriptor."""
    header = arguments[: _ARRAYS.itemsize].view(_ARRAYS)[0]
    text = arguments[_ARRAYS.itemsize :][: int(header["type_length"])].tobytes().decode("ascii")
    [entry] = json.loads(text)
    shape: list[int] = header["shape"].tolist()
    while shape and not shape[-1]:
        shape.pop()
    return math.prod(shape) * np.dtype([tuple(entry)]).itemsize


def _check_sizes(
    part: FieldInfo,
    found: _Found,
    among: NDArray[np.bool_],
    expected: NDArray[np.uint64],
    problems: Problems,
) -> NDArray[np.bool_]:
    """Check the extents of the samples `among`, and return which are right."""
    fits = (found.largest == expected) | (found.smallest == expected)
    problems.add_rows(
        "size",
        among & ~fits,
        lambda i: (i, f"{part.name!r} has {found.largest[i]} bytes, and should have {expected[i]}"),
    )
    right: NDArray[np.bool_] = among & fits
    return right


def _stored_images(
    column: NDArray[Any], sizes: NDArray[np.uint64], whole: NDArray[np.bool_]
) -> NDArray[Any]:
    rows = np.flatnonzero(whole)
    images = np.zeros(len(rows), dtype=STORED_IMAGE)
    images["sample_id"], images["ptr"], images["size"] = rows, column["data_ptr"][rows], sizes[rows]
    for name in ("mode", "height", "width"):
        images[name] = column[name][rows]
    return images
