"""What is wrong in the allocation table of a beton, all of it, without a Python object per extent.

`BetonIndex.open` refuses a file at the first fault that would let samples be misread. Here every
fault is listed, and each byte of the data may have one owner at most.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tables import Tables

MAX_KEPT = 1000  # problems; a file with more of them is not mended one by one


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a beton."""

    kind: str
    """What kind: `tables`, `manifest`, `owner`, `bounds`, `page`, `start`, `overlap`, `pointer`,
    `unused`, `size`, `image`, `label`, `read` or `jpeg`."""
    sample_id: int | None
    """The sample, where it is one's."""
    message: str


@dataclass(slots=True)
class Problems:
    """Problems in the order in which they are found: the first of them, and how many there are."""

    kept: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        """Add one."""
        self.count += 1
        if len(self.kept) < MAX_KEPT:
            self.kept.append(problem)

    def add_rows(
        self, kind: str, wrong: NDArray[np.bool_], say: Callable[[int], tuple[int, str]]
    ) -> None:
        """Add one for each true entry of `wrong`; `say` tells sample and message of an entry."""
        rows = np.flatnonzero(wrong)
        for row in rows[: MAX_KEPT - len(self.kept)]:
            self.kept.append(Problem(kind, *say(int(row))))
        self.count += len(rows)


def check_extents(tables: Tables, problems: Problems) -> None:
    """Look for extents of no sample, outside of the data, across pages, or over each other."""
    table, num_samples = tables.allocations, len(tables.metadata)
    data_start, data_end = tables.data_start, tables.data_end
    foreign = table["sample_id"] >= num_samples
    outside = ~is_inside(tables, table["ptr"], table["size"])
    outside &= table["size"] > 0  # ffcv gives empty bytes at the very start a place before the data

    def describe(row: int, what: str) -> tuple[int, str]:
        sample_id, ptr, size = table[row].tolist()
        return sample_id, f"its extent of {size} bytes at byte {ptr} {what}"

    problems.add_rows(
        "owner", foreign, lambda row: describe(row, f"is of none of {num_samples} samples")
    )
    problems.add_rows(
        "bounds",
        outside,
        lambda row: describe(row, f"lies outside of the data, bytes {data_start} to {data_end}"),
    )
    rows = np.flatnonzero(~outside & (table["size"] > 0))
    rows = rows[np.argsort(table["ptr"][rows], kind="stable")]
    starts = table["ptr"][rows]
    ends = starts + table["size"][rows]
    size = tables.header["page_size"].astype(np.uint64)
    problems.add_rows(
        "page",
        starts // size != (ends - np.uint64(1)) // size,
        lambda at: describe(rows[at], "crosses a page, of which ffcv's page cache reads one"),
    )
    reach = np.maximum.accumulate(ends)  # how far all extents up to this one go
    clash = np.append(False, starts[1:] < reach[:-1])[: len(rows)]
    if not clash.any():
        return
    holders = np.maximum.accumulate(np.where(ends == reach, np.arange(len(rows)), 0))
    same = np.append(False, starts[1:] == starts[:-1])

    def describe_clash(at: int) -> tuple[int, str]:
        other = table[rows[at - 1 if same[at] else holders[at - 1]]]["sample_id"]
        what = "starts where" if same[at] else "overlaps"
        return describe(rows[at], f"{what} one of sample {other}{' does' if same[at] else ''}")

    problems.add_rows("start", clash & same, describe_clash)
    problems.add_rows("overlap", clash & ~same, describe_clash)


def is_inside(tables: Tables, ptr: Any, size: Any) -> NDArray[np.bool_]:
    """Say which byte ranges lie in the data."""
    span = np.uint64(tables.data_end - tables.data_start)
    # Sizes are compared first, so that `ptr + size` cannot wrap around.
    fits = (size <= span) & (ptr >= np.uint64(tables.data_start))
    inside: NDArray[np.bool_] = fits & (
        ptr <= np.uint64(tables.data_end) - np.minimum(size, span).astype(np.uint64)
    )
    return inside
