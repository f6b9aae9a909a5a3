"""Check the records of each field against the allocation table, without an object per sample."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import FieldInfo
from ..format import IMAGE_MODES, JPG, pixel_bytes, pointers
from ..tables import Tables
from .problems import Problems


def check_fields(tables: Tables, class_limit: int, problems: Problems) -> NDArray[np.int64]:
    """Check that the records of each field agree with the byte ranges of their samples.

    Class ids must lie in [0, class_limit).

    Return the images whose tables have no problem, `(n, 6)`: sample id, first byte, bytes, mode,
    height and width.
    """
    stored = _StoredRanges(tables)
    used: list[NDArray[np.int64]] = []
    images = [np.zeros((0, 6), dtype=np.int64)]
    for field in tables.fields:
        column = tables.metadata[field.column]
        if field.kind == "int" and field.name == "label":
            _check_labels(column, class_limit, problems)
        for places in pointers(column, field.kind):
            found = _FoundRanges(stored, places)
            used.append(found.keys[found.own])
            _check_places(field, places, found, problems)
            if field.is_custom:
                continue
            if field.kind == "rgb_image":
                whole = _check_images(field, column, found, problems)
                whole &= tables.contains(places, found.largest)
                rows, record = np.flatnonzero(whole), column[whole]
                place = (rows, record["data_ptr"], found.largest[whole])
                columns = (*place, record["mode"], record["height"], record["width"])
                images.append(np.stack([each.astype(np.int64) for each in columns], axis=1))
            else:
                size = field.value_bytes
                expected = column["size"] if size is None else np.full(len(column), size, np.uint64)
                _check_sizes(field, found, found.own, expected, problems)
    if not any(field.is_custom for field in tables.fields):
        stored.check_unused(used, problems)
    return np.concatenate(images)


class _StoredRanges:
    """The byte ranges of the samples, sorted by a key made of first byte and sample.

    Several byte ranges may share a key, because ffcv places empty bytes where the next ones start.
    """

    def __init__(self, tables: Tables) -> None:
        self.num_samples = len(tables.metadata)
        owned = tables.allocations[tables.allocations["sample_id"] < self.num_samples]
        self.places, groups = np.unique(owned["ptr"], return_inverse=True)
        keys = groups * self.num_samples + owned["sample_id"].astype(np.int64)
        order = np.lexsort((owned["size"], keys))
        self.keys: NDArray[np.int64] = keys[order]
        self.rows = owned[order]

    def check_unused(self, used: list[NDArray[np.int64]], problems: Problems) -> None:
        """Find byte ranges to which no field points. `used` holds the keys in use."""
        wanted = np.sort(np.concatenate([self.keys[:0], *used]))
        if np.array_equal(wanted, self.keys):
            return
        keys, first, counts = np.unique(self.keys, return_index=True, return_counts=True)
        num_used = np.searchsorted(wanted, keys, side="right") - np.searchsorted(wanted, keys)

        def describe(at: int) -> tuple[int, str]:
            sample_id, ptr, size = self.rows[first[at]].tolist()
            return sample_id, f"no field points to its {size} bytes at byte {ptr}"

        problems.add_rows("unused", counts > num_used, describe)


class _FoundRanges:
    """For every sample i, the byte range that starts at `places[i]`.

    `somewhere` says whether a range starts there, `own` whether it belongs to the sample.
    `smallest` and `largest` are its sizes; they differ if an empty range starts there too.
    """

    def __init__(self, stored: _StoredRanges, places: NDArray[np.uint64]) -> None:
        if not len(stored.keys):
            self.somewhere = self.own = np.zeros(len(places), dtype=np.bool_)
            self.keys = np.zeros(len(places), dtype=np.int64)
            self.smallest = self.largest = np.zeros(len(places), dtype=np.uint64)
            return
        groups = np.minimum(np.searchsorted(stored.places, places), len(stored.places) - 1)
        self.somewhere = stored.places[groups] == places
        self.keys = groups * stored.num_samples + np.arange(len(places))
        first = np.minimum(np.searchsorted(stored.keys, self.keys), len(stored.keys) - 1)
        last = np.maximum(np.searchsorted(stored.keys, self.keys, side="right") - 1, 0)
        self.own = self.somewhere & (stored.keys[first] == self.keys)
        self.smallest = stored.rows["size"][first]
        self.largest = stored.rows["size"][last]


def _check_labels(column: NDArray[np.int64], class_limit: int, problems: Problems) -> None:
    problems.add_rows(
        "label",
        (column < 0) | (column >= class_limit),
        lambda i: (i, f"its label is {column[i]}, not in [0, {class_limit})"),
    )


def _check_places(
    field: FieldInfo, places: NDArray[np.uint64], found: _FoundRanges, problems: Problems
) -> None:
    lost = ~found.somewhere
    if field.is_custom:
        lost &= places != 0  # a custom field may use 0 for "no bytes"
    else:
        problems.add_rows(
            "pointer",
            found.somewhere & ~found.own,
            lambda i: (i, f"{field.name!r} points to bytes of another sample, byte {places[i]}"),
        )
    problems.add_rows(
        "pointer",
        lost,
        lambda i: (i, f"{field.name!r} points to byte {places[i]}, where no byte range starts"),
    )


def _check_images(
    field: FieldInfo, column: NDArray[Any], found: _FoundRanges, problems: Problems
) -> NDArray[np.bool_]:
    """Check image records and sizes. Return which samples have an image that can be decoded."""
    is_known = np.isin(column["mode"], list(IMAGE_MODES))
    problems.add_rows(
        "image",
        ~is_known,
        lambda i: (i, f"{field.name!r} is stored as mode {column['mode'][i]}, unknown to ffcv"),
    )
    has_sides = (column["height"] > 0) & (column["width"] > 0)
    problems.add_rows(
        "image",
        ~has_sides,
        lambda i: (i, f"{field.name!r} is {column['height'][i]} x {column['width'][i]} pixels"),
    )
    is_jpeg = column["mode"] == JPG  # of any size, but not empty
    expected = np.where(is_jpeg, np.maximum(found.largest, 1), pixel_bytes(column))
    return _check_sizes(field, found, found.own & is_known & has_sides, expected, problems)


def _check_sizes(
    field: FieldInfo,
    found: _FoundRanges,
    among: NDArray[np.bool_],
    expected: NDArray[np.uint64],
    problems: Problems,
) -> NDArray[np.bool_]:
    """Compare the stored bytes of the samples `among`. Return which of them are as expected."""
    fits = (found.largest == expected) | (found.smallest == expected)
    problems.add_rows(
        "size",
        among & ~fits,
        lambda i: (i, f"{field.name!r} has {found.largest[i]} bytes instead of {expected[i]}"),
    )
    right: NDArray[np.bool_] = among & fits
    return right
