"""The table of the end-to-end benchmark: one line for each way to feed the training."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "| trained | keep | fed by | speed-up | x keep | cold, x keep | x keep with LM, FM "
    "| images/s | waiting | read / retained |\n|---|---|---|---|---|---|---|---|---|---|"
)
Key = tuple[str, str, float]  # architecture, side, keep


def end_to_end_table(lines: Sequence[Mapping[str, Any]], measured: str) -> str:
    """Return the benchmark's rows as a Markdown table with its caption.

    Args:
        lines: lines of the result file: the environment, then the rows.
        measured: start of the caption, which names the machine.
    """
    rows = lines[1:]
    sides: dict[Key, None] = {}  # in the order of the file, the full source first
    for row in rows:
        for how in (row["params"]["how"], row["other_name"]):
            if "Loader" in how or how.startswith("compacted"):
                sides[row["params"]["arch"], how, row["params"]["keep"]] = None
    order = sorted(sides, key=lambda key: (key[0], not key[1].endswith(", full"), key[2]))
    first = rows[0]["params"]
    caption = (
        f"{measured}, by `python -m benchmarks.end_to_end`: {first['samples']:,} images of 400 px, "
        f"crops of {first['resolution']} px, batches of {first['batch_size']:,}; medians of epochs "
        "that alternate. *Speed-up*: against the full source by the same loader; the ideal is "
        "1 / keep, *x keep* 1. *Cold*: the file was dropped from the page cache before each "
        "epoch, and bytes are read as needed; otherwise the file is in memory. *With LM, FM*: a "
        "run of 16 epochs, with the surrogate's inference, scores, selection and, for compacted "
        "files, `compact`; the training of the surrogate is not counted. *Waiting*: share of the "
        "time in which the step had no batch to work on."
    )
    if not any(row["figure"] == "gpu_limit_share" for row in rows):
        caption += " Loading and training share the processor here, so some waiting remains."
        return "\n".join([HEAD, *(_line(rows, key) for key in order), "", caption])
    caption += " *Of the limit*: images/s against the same GPU fed with pixels from its own memory."
    head = "\n".join(
        f"{part}{more}"
        for part, more in zip(HEAD.split("\n"), (" of the limit |", "---|"))  # noqa: B905
    )
    cells = [
        f"{_line(rows, key)} {_cell(_value(rows, 'gpu_limit_share', key, part='ratio'), '.2f')} |"
        for key in order
    ]
    return "\n".join([head, *cells, "", caption])


def _line(rows: Sequence[Mapping[str, Any]], key: Key) -> str:
    arch, how, keep = key
    speedup = _find(rows, "speedup_of_ideal", key, page_cache="warm")
    selected = [
        _find(rows, "speedup_with_selection", key, method=method)
        for method in ("label_mapping", "feature_mapping")
    ]
    with_selection = ", ".join(_cell(row["ratio"], ".2f") for row in selected if row)
    read = _value(rows, "bytes_read", key, page_cache="cold", part="ratio")
    cells = [
        arch,
        f"{keep:g}",
        how,
        _cell(speedup["params"]["speedup"] if speedup else None, ".2f"),
        _cell(speedup["ratio"] if speedup else None, ".2f"),
        _cell(_value(rows, "speedup_of_ideal", key, page_cache="cold", part="ratio"), ".2f"),
        with_selection,
        _cell(_value(rows, "images_per_second", key), ",.0f"),
        _cell(_value(rows, "stall_share", key), ".1%"),
        _cell(1 / read if read else None, ".2f"),
    ]
    return f"| {' | '.join(cells)} |"


def _value(
    rows: Sequence[Mapping[str, Any]],
    figure: str,
    key: Key,
    *,
    page_cache: str = "warm",
    part: str = "ours",
) -> float | None:
    """Return the measurement of a side, from its own row or from a row that compares with it."""
    found = _find(rows, figure, key, page_cache=page_cache)
    if found:
        return found[part]  # type: ignore[no-any-return]  # a JSON object
    arch, how, keep = key
    for row in rows:
        params = row["params"]
        where = (row["figure"], params["arch"], row["other_name"], params["keep"])
        if where == (figure, arch, how, keep) and params["page_cache"] == page_cache:
            return row["other"] if part == "ours" else None
    return None


def _find(
    rows: Sequence[Mapping[str, Any]], figure: str, key: Key, **wanted: str
) -> Mapping[str, Any] | None:
    for row in rows:
        params = row["params"]
        found = (row["figure"], params["arch"], params["how"], params["keep"])
        if found == (figure, *key) and all(params[name] == wanted[name] for name in wanted):
            return row
    return None


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
