"""Write the tables of README.md, docs/evidence.md and of studies from the result files.

After a study, or the demo, `--study runs/NAME` copies its results to
`benchmarks/results/studies/NAME.jsonl`; its tables are NAME.md in the same folder.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro

from benchmarks.end_to_end.table import end_to_end_table
from benchmarks.harness import studies
from benchmarks.harness.rows import markdown
from benchmarks.peers.table import peers_sentence, peers_table
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import atomic_open, one_line_errors

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(ROOT / page for page in ("README.md", "docs/evidence.md"))
RESULTS = ROOT / "benchmarks" / "results"
STUDIES = RESULTS / "studies"
PEERS = RESULTS / "peers.jsonl"
END_TO_END = {"end-to-end": "end_to_end.jsonl", "end-to-end GPU": "end_to_end_gpu.jsonl"}

# Names in the result files that tables show in other words.
SIDES = {
    "numpy.sum of the map as uint64": "reading the map once (numpy.sum)",
    "sum of the map as uint64 by all threads": "reading the map once, by all threads",
}
# Parameters of a row that tables show, and how.
DETAILS: dict[str, Callable[[Any], str]] = {
    "targets": "{:,} targets".format,
    "samples": "{:,} samples".format,
    "images": "{:,} images".format,
    "keep": "{:.0%} kept".format,
    "order": str,
    "file_bytes": lambda size: f"{size / 1e6:,.0f} MB",
    "how": str,
    "flush": "flushed: {}".format,
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table of a benchmark that compares two sides."""

    figures: dict[str, str]
    details: tuple[str, ...]
    """Parameters to show in parentheses after the description."""
    notes: str = ""


COMPARISONS = {
    "loader": Comparison(
        figures={
            "read_amplification_cold": "bytes read from disk / bytes retained, the worst case",
            "pool_bytes": "memory for bytes read",
            "construct_seconds": "construction to first planned epoch",
            "construct_bytes": "memory until the first epoch is planned",
            "planning_seconds": "planning an epoch",
            "second_loader_seconds": "second loader of a process, to its first batch",
            "jpeg_rrc_throughput": "JPEG of 400 px, random resized crop to 160",
            "jpeg_rrc_throughput_500": "JPEG of 500 px, random resized crop to 224",
            "jpeg_center_throughput": "JPEG of 400 px, centre crop to 160, as for evaluation",
            "raw_rrc_throughput": "raw of 400 px, random resized crop to 160",
            "leaked_threads": "threads left by 5 early breaks",
            "index_build": "indexing JPEGs of 400 px ahead",
            "index_bytes": "bytes of the indexes",
            "first_epoch_throughput": "first epoch, JPEG of 400 px, with indexes",
        },
        details=("samples", "keep", "order", "how"),
    ),
    "writing": Comparison(
        figures={
            "write_passthrough": "write JPEG files of 400 px",
            "write_resize": "write JPEG files, shrunk",
            "compact_copy": "compact to a fifth, byte for byte",
            "compact_raw_throughput": (
                "load a fifth at 160 px: compacted to raw, against the JPEG original"
            ),
            "write_peak_bytes": "memory to write",
        },
        details=("images", "file_bytes", "how", "flush"),
        notes=(
            " The input files are in the page cache. `write_beton` and `compact` index no JPEGs "
            "here. They flush to the disk before the clock stops; ffcv does not, and `cp` does "
            "where the row says so. Memory: growth over the process and its workers. `write_beton` "
            "keeps about 90 bytes per image plus its name, and briefly copies part of this."
        ),
    ),
    "scoring": Comparison(
        figures={
            "fm_assign": "votes and tie-break scores of feature mapping",
            "fm_assign_roofline": "votes and tie-break scores of feature mapping",
            "class_means": "means of classes, from a memory map of float16",
            "histogram": "samples of each class",
            "select_indices": "sample ids of the retained classes",
            "grand": "norms of per-sample gradients, exact",
        },
        details=("targets", "samples", "images", "keep", "how"),
        notes=(
            " Both sides have the same arrays and threads, and their results are compared. The "
            "published loop is measured on some images and extrapolated. The bare product, without "
            "votes, is the fastest of numpy's, torch's and one computed in blocks."
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    study: Path | None = None
    """Folder of a study whose results are kept."""
    note: str = ""
    """How they were measured, if not by running the study file on an idle machine."""


def comparison_table(name: str) -> str:
    table = COMPARISONS[name]
    head, *rows = _lines(RESULTS / f"{name}.jsonl")
    caption = (
        f"{_measured(head)}, by `python -m benchmarks.{name}`. Runs of both sides "
        "alternate; the table gives medians, and the quartiles of the ratio. A ratio above 1 is "
        f"better for us.{table.notes}"
    )
    columns = ["what", "against", "other", "ours", "ratio"]
    timed = any("cpu_ratio" in row for row in rows)
    if timed:
        columns.append("in processor time")
        caption += " *In processor time*: of the process and its descendants."
    table_rows = []
    for row in rows:
        params = row["params"]
        shown = ", ".join(DETAILS[each](params[each]) for each in table.details if each in params)
        cells = [f"{table.figures[row['figure']]} ({shown})"]
        cells.append(SIDES.get(row["other_name"], row["other_name"]))
        cells += [_amount(row[side], row["unit"]) for side in ("other", "ours")]
        cells.append(with_quartiles(row["ratio"], row["spread"]))
        if timed:
            cells.append(with_quartiles(row.get("cpu_ratio"), row.get("cpu_spread")))
        table_rows.append(cells)
    return f"{markdown(columns, table_rows)}\n\n{caption}"


def with_quartiles(ratio: float | None, spread: Sequence[float] | None) -> str:
    """Return a median ratio and its quartiles, where there are any."""
    if ratio is None:
        return ""
    return _number(ratio) + (f" ({_number(spread[0])} to {_number(spread[1])})" if spread else "")


def _measured(head: dict[str, Any]) -> str:
    machine = head["environment"]
    return f"Measured on {machine['cores']} cores of {machine['cpu']}, GPU: {machine['gpu']}"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    if unit == "bytes/s":
        return f"{value / 1e9:.2f} GB/s"
    shown = {"bytes/image": "bytes", "s": "s", "images/s": "images/s"}
    shown["images/processor s"] = "images per processor second"
    return f"{_number(value)} {shown.get(unit, '')}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def fill(page: str, name: str, text: str) -> str:
    """Return a page with `text` between the markers of table `name`."""
    start, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    head, found, rest = page.partition(start)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no markers {start} and {end}. Put them back.")
    return f"{head}{start}\n{text}\n{end}{tail}"


def filled(page: Path) -> str:
    makers: dict[str, Callable[[], str]] = {
        "methods": methods.table,
        "surrogates": partial(module_table, "surrogates"),
        "looks": partial(module_table, "looks"),
        **{name: partial(comparison_table, name) for name in COMPARISONS},
    }
    for name, file in END_TO_END.items():
        if (RESULTS / file).exists():  # not every machine has a GPU
            lines = _lines(RESULTS / file)
            makers[name] = partial(end_to_end_table, lines, _measured(lines[0]))
    if PEERS.exists():
        lines = _lines(PEERS)
        makers["peers"] = partial(peers_table, lines, _measured(lines[0]), with_quartiles)
        makers["fastest peer"] = partial(peers_sentence, lines)
    text = page.read_text()
    for name, make in makers.items():
        if f"<!-- {name} table -->" in text:
            text = fill(text, name, make())
    return text


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def module_table(name: str) -> str:
    """Return the table that a benchmark of one module makes from its own results."""
    bench: Any = import_module(f"benchmarks.{name}")  # with torch, which takes seconds
    return str(bench.table(_lines(bench.RESULT)))


def study_page(results: Path) -> str:
    """Return the page with the tables of a study, whose results are kept in a file."""
    return studies.page(results.stem, _lines(results))


def keep_study(folder: Path, out: Path, note: str = "") -> None:
    """Keep the rows of a study, headed by its machine, its number of runs and a note."""
    summary = json.loads((folder / "summary.json").read_text())
    head = {**{name: summary[name] for name in ("environment", "runs")}, "note": note}
    rows = (folder / "results.jsonl").read_bytes()
    out.mkdir(exist_ok=True)
    with atomic_open(out / f"{folder.name}.jsonl") as stream:
        stream.write(json.dumps(head).encode() + b"\n" + rows)


def main(config: Config) -> None:
    """Keep the given results, if any, and write the pages."""
    if config.study:
        keep_study(config.study, STUDIES, config.note)
    for page in PAGES:
        page.write_text(filled(page))
    for results in STUDIES.glob("*.jsonl"):
        results.with_suffix(".md").write_text(study_page(results))


if __name__ == "__main__":
    settings = tyro.cli(Config, prog="python -m benchmarks.harness.tables", description=__doc__)
    with one_line_errors():
        main(settings)
