"""Write the tables of docs/reliability.md from the result files of the campaigns.

Run as `python -m tests.campaigns.tables`.
"""

from collections.abc import Sequence

from benchmarks.harness.rows import markdown
from benchmarks.harness.tables import fill
from tests.campaigns.results import ROOT, Line, read

PAGE = ROOT / "docs" / "reliability.md"
CAMPAIGNS = ("fuzz", "chaos", "soak", "concurrency")


def filled(page: str) -> str:
    """Return the page with the tables of the kept results."""
    for name in CAMPAIGNS:
        page = fill(page, name, table_of(read(name)))
    return page


def table_of(lines: Sequence[Line]) -> str:
    """Return the table of a campaign and a sentence about the machine."""
    if not lines:
        return "No results are kept."
    columns = ["what", "cases", "outcomes", "faults", "time"]
    optional = {
        "memory": [_memory(line["peak_bytes"]) for line in lines],
        "figures": [_figures(line) for line in lines],
    }
    shown = {name: cells for name, cells in optional.items() if any(cells)}
    rows = [
        [
            line["kind"], f"{line['cases']:,}", _counts(line["outcomes"]),
            _counts(line["faults"]) or "none", _time(line["seconds"]),
            *(cells[at] for cells in shown.values()), line["date"], line["commit"],
        ]
        for at, line in enumerate(lines)
    ]  # fmt: skip
    total = sum(line["cases"] for line in lines)
    faults = sum(sum(line["faults"].values()) for line in lines)
    machines = " and ".join(sorted({line["machine"] for line in lines}))
    table = markdown([*columns, *shown, "date", "commit"], rows)
    return f"{table}\n\n{total:,} cases, {faults:,} faults, on {machines}."


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _figures(line: Line) -> str:
    return ", ".join(f"{name}: {value}" for name, value in line["figures"].items())


def _memory(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
