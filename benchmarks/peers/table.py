"""The table of the peers, and the sentence about the fastest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.harness.rows import markdown

COLUMNS = (
    "loader", "images per processor second", "ours / theirs", "first batch, processor time",
    "first batch", "memory", "read from disk / retained",
)  # fmt: skip
Row = Mapping[str, Any]


def peers_table(
    lines: Sequence[Row], measured: str, with_quartiles: Callable[[Any, Any], str]
) -> str:
    """Return the benchmark's rows as a Markdown table with its caption, the fastest peer first.

    Args:
        lines: lines of the result file: the environment, then the rows.
        measured: start of the caption, which names the machine.
        with_quartiles: formats a ratio and its quartiles.
    """
    figures = _by_figure(lines)
    rates, starts = figures["peers"], figures["first_batch"]
    memory, reads = figures["peer_memory"], figures["peer_reads"]
    fastest = sorted(rates, key=lambda peer: -rates[peer]["other"])

    def cells(side: str, peer: str, name: str, ratio: str) -> list[str]:
        retained = rates[peer]["params"]["retained_bytes"]
        return [
            name,
            f"{rates[peer][side]:,.0f}",
            ratio,
            f"{starts[peer][side]:.2f} s",
            f"{starts[peer]['params'][f'{side}_wall_s']:.2f} s",
            f"{memory[peer][side] / 1e6:,.0f} MB",
            f"{reads[peer][side] / retained:.2f}",
        ]

    rows = [cells("ours", fastest[0], "`PrunedLoader`", "")]
    for peer in fastest:
        row = rates[peer]
        ratio = with_quartiles(row["ratio"], row["spread"])
        rows.append(cells("other", peer, row["other_name"], ratio))
    params = rates[fastest[0]]["params"]
    caption = (
        f"{measured}, by `python -m benchmarks.peers`: {params['keep']:.0%} of "
        f"{params['samples']:,} JPEGs of 400 px, random resized crops of 160 px and flips, batches "
        "of 256, on one core. Medians of rounds that alternate, and the quartiles of the ratio. "
        "Processor time is that of all processes and threads of a loader. *First batch*: from the "
        "start of Python, with the files in memory and compiled code on disk. *Memory*: the most "
        "that all processes hold in the first epoch, without mapped files. *Read*: in an epoch "
        "with a cold page cache. litdata, streaming and turboloader read a copy of the retained "
        "images that was written for them. `PrunedLoader` has the index of the retained JPEGs, "
        "which a first epoch makes. Each loader's file in `benchmarks/peers/sides/` says how it is "
        "used."
    )
    return f"{markdown(COLUMNS, rows)}\n\n{caption}"


def peers_sentence(lines: Sequence[Row]) -> str:
    """Return how the fastest peer compares."""
    rates = _by_figure(lines)["peers"]
    best = max(rates.values(), key=lambda row: float(row["other"]))
    return (
        f"On one core, `PrunedLoader` loads {best['ratio']:.2g} times as many images per second as "
        f"the fastest of {len(rates)} other loaders, {best['params']['peer']}. "
        "[Comparison](docs/evidence.md#other-loaders)"
    )


def _by_figure(lines: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Return the rows by figure and peer."""
    found: dict[str, dict[str, Row]] = {}
    for row in lines[1:]:
        found.setdefault(row["figure"], {})[row["params"]["peer"]] = row
    return found
