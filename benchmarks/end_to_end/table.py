"""The table of the end-to-end benchmark: one line for each way to feed the training."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.rows import markdown

COLUMNS = (
    "trained", "fraction kept", "fed by", "speed-up", "x kept", "cold, x kept",
    "x kept with LM, FM", "images/s", "waiting", "read / retained",
)  # fmt: skip
Key = tuple[str, str, float]  # architecture, side, keep


def _range(ratios: Sequence[float]) -> str:
    return " to ".join(f"{each:.3f}" for each in sorted({min(ratios), max(ratios)}))


def end_to_end_table(lines: Sequence[Mapping[str, Any]], measured: str) -> str:
    """Return the benchmark's rows as a Markdown table with its caption.

    Args:
        lines: lines of the result file: the environment, then the rows.
        measured: start of the caption, which names the machine.
    """
    rows = lines[1:]
    sides: dict[Key, None] = {}  # in the order of the file, the full source first
    # Measurements of a side under a condition (page cache or method).
    found: dict[tuple[str, Key, str], dict[str, Any]] = {}
    for row in rows:
        if row["figure"] == "guard_cost":  # in the caption
            continue
        params = row["params"]
        condition = params.get("method", params["page_cache"])
        own = {"value": row["ours"], "ratio": row["ratio"], "speedup": params.get("speedup")}
        for how, numbers in ((params["how"], own), (row["other_name"], {"value": row["other"]})):
            key = (params["arch"], how, params["keep"])
            if "Loader" in how or how.startswith("compacted"):
                sides[key] = None
            cell = found.setdefault((row["figure"], key, condition), numbers)
            if numbers is own:
                cell.update(own)

    def cell(figure: str, key: Key, form: str, condition: str = "warm", part: str = "ratio") -> str:
        value = found.get((figure, key, condition), {}).get(part)
        return "" if value is None else format(value, form)

    def line(key: Key) -> list[str]:
        arch, how, keep = key
        mapped = [
            cell("speedup_with_selection", key, ".2f", method)
            for method in ("label_mapping", "feature_mapping")
        ]
        read = found.get(("bytes_read", key, "cold"), {}).get("ratio")
        return [
            arch,
            f"{keep:g}",
            how,
            cell("speedup_of_ideal", key, ".2f", part="speedup"),
            cell("speedup_of_ideal", key, ".2f"),
            cell("speedup_of_ideal", key, ".2f", "cold"),
            ", ".join(filter(None, mapped)),
            cell("images_per_second", key, ",.0f", part="value"),
            cell("stall_share", key, ".1%", part="value"),
            format(1 / read, ".2f") if read else "",
        ]

    order = sorted(sides, key=lambda key: (key[0], not key[1].endswith(", full"), key[2]))
    table = [[*COLUMNS], *map(line, order)]
    first = rows[0]["params"]
    caption = (
        f"{measured}, by `python -m benchmarks.end_to_end`: {first['samples']:,} images of 400 px, "
        f"crops of {first['resolution']} px, batches of {first['batch_size']:,}; medians of epochs "
        "that alternate. *Fraction kept*: of the source's classes. *Speed-up*: against the full "
        "source by the same loader. *x kept*: the speed-up times the fraction kept; 1 is ideal. "
        "*Cold*: the file was dropped from the page cache before each epoch, and bytes are read as "
        "needed; otherwise the file is in memory. *With LM, FM*: a "
        "run of 16 epochs, with the surrogate's inference, scores, selection and, for compacted "
        "files, `compact`; the training of the surrogate is not counted. *Waiting*: share of the "
        "time in which the step had no batch to work on."
    )
    if any(row["figure"] == "gpu_limit_share" for row in rows):
        limits = [cell("gpu_limit_share", key, ".2f") for key in order]
        for cells, limit in zip(table, ("of the limit", *limits), strict=True):
            cells.append(limit)
        caption += (
            " *Of the limit*: images/s against the same GPU fed with pixels from its own memory."
        )
        guards = [row["ratio"] for row in rows if row["figure"] == "guard_cost"]
        caption += f" Images/s with the guard of pinned buffers / without: {_range(guards)}."
    else:
        caption += " Loading and training share the CPU here, so some waiting remains."
    return f"{markdown(table[0], table[1:])}\n\n{caption}"
