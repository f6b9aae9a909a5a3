"""Check the allocation table of a beton: a byte of the data may belong to one sample only."""

import numpy as np

from ..tables import Tables
from .problems import Problems


def check_allocations(tables: Tables, problems: Problems) -> None:
    """Find byte ranges without a sample, outside of the data, across pages, or overlapping."""
    table, num_samples = tables.allocations, len(tables.metadata)
    outside = ~tables.contains(table["ptr"], table["size"])
    outside &= table["size"] > 0  # ffcv places empty bytes of the first samples at byte 0

    def describe(row: int, what: str) -> tuple[int, str]:
        sample_id, ptr, size = table[row].tolist()
        return sample_id, f"its {size} bytes at byte {ptr} {what}"

    problems.add_rows(
        "owner",
        table["sample_id"] >= num_samples,
        lambda row: describe(row, f"belong to none of {num_samples} samples"),
    )
    data = f"bytes {tables.data_start} to {tables.data_end}"
    problems.add_rows(
        "bounds", outside, lambda row: describe(row, f"are outside of the data, {data}")
    )
    rows = np.flatnonzero(~outside & (table["size"] > 0))
    rows = rows[np.argsort(table["ptr"][rows], kind="stable")]
    starts = table["ptr"][rows]
    ends = starts + table["size"][rows]
    size = tables.header["page_size"].astype(np.uint64)
    problems.add_rows(
        "page",
        starts // size != (ends - np.uint64(1)) // size,
        lambda at: describe(rows[at], "cross a page boundary, which ffcv cannot read"),
    )
    reach = np.maximum.accumulate(ends)  # end of the furthest byte range up to this one
    clash = np.append(False, starts[1:] < reach[:-1])[: len(rows)]
    if not clash.any():
        return
    furthest = np.maximum.accumulate(np.where(ends == reach, np.arange(len(rows)), 0))
    same = np.append(False, starts[1:] == starts[:-1])

    def describe_clash(at: int) -> tuple[int, str]:
        other = table[rows[at - 1 if same[at] else furthest[at - 1]]]["sample_id"]
        what = "start at the same byte as" if same[at] else "overlap"
        return describe(rows[at], f"{what} bytes of sample {other}")

    problems.add_rows("start", clash & same, describe_clash)
    problems.add_rows("overlap", clash & ~same, describe_clash)
