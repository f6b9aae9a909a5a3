"""Write the tables of README and docs/evidence.md from the registry and the result files.

    dp4tl demo --fresh
    python -m benchmarks.loader
    python -m benchmarks.writing
    python -m benchmarks.scoring
    python -m benchmarks.end_to_end
    python -m benchmarks.harness.tables --result runs/demo/result.json

The demo's result is kept in `benchmarks/results/demo.json`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks.end_to_end.table import end_to_end_table
from dp4tl_ffcv.scoring import methods
from dp4tl_ffcv.utils import one_line_errors, write_json

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "evidence.md")
KEPT = ROOT / "benchmarks" / "results" / "demo.json"
LOADER = ROOT / "benchmarks" / "results" / "loader.jsonl"
WRITING = ROOT / "benchmarks" / "results" / "writing.jsonl"
SCORING = ROOT / "benchmarks" / "results" / "scoring.jsonl"
END_TO_END = {
    "end-to-end": ROOT / "benchmarks" / "results" / "end_to_end.jsonl",
    "end-to-end GPU": ROOT / "benchmarks" / "results" / "end_to_end_gpu.jsonl",
}
NAMES = {"full": "full source", "label_mapping": "LM", "feature_mapping": "FM", "random": "random"}
HEAD = (
    "| selection | keep | classes | pretraining | speed-up | with selection cost | linear probe "
    "| full finetuning | relevant |\n|---|---|---|---|---|---|---|---|---|"
)
LOADER_HEAD = "| what | stock ffcv | `PrunedLoader` | ratio |\n|---|---|---|---|"
FIGURES = {
    "read_amplification": "bytes read / bytes retained",
    "pool_bytes": "memory for bytes read",
    "construct_seconds": "construction to first planned epoch",
    "construct_bytes": "memory for that",
    "planning_seconds": "planning an epoch",
    "second_loader_seconds": "second loader of a process, to its first batch",
    "jpeg_rrc_throughput": "JPEG of 400 px, random resized crop to 160",
    "raw_rrc_throughput": "raw of 400 px, random resized crop to 160",
    "leaked_threads": "threads left by 5 early breaks",
}
WRITING_HEAD = "| what | against | other | ours | ratio |\n|---|---|---|---|---|"
WRITING_FIGURES = {
    "write_passthrough": "write JPEG files of 400 px",
    "write_resize": "write JPEG files, shrunk",
    "compact_copy": "compact to a fifth, byte for byte",
    "compact_raw_throughput": "load a fifth at 160 px: compacted to raw, against the JPEG original",
    "write_peak_bytes": "memory to write",
}
SCORING_FIGURES = {
    "fm_assign": "votes of feature mapping, and the tie-break scores",
    "fm_assign_roofline": "the same",
    "class_means": "means of classes, from a memory map of float16",
    "histogram": "samples of each class",
    "select_indices": "sample ids of the retained classes",
    "grand": "norms of per-sample gradients, exact",
}
MEDIANS = "medians of both sides in alternation and of their ratio; above 1 is better for"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write."""

    result: Path | None = None
    """A demo's result.json to keep. Without it, the kept result is used."""


def demo_table(result: dict[str, Any]) -> str:
    """Return the demo's rows as a Markdown table with its caption."""
    rows: dict[tuple[str, float, str], dict[str, Any]] = {}
    for row in result["rows"]:
        rows.setdefault((row["budget"], -row["keep"], row["method"]), {})[row["finetuning"]] = row
    torch, seeds = result["environment"]["torch"], len(result["seeds"])
    lines = [
        HEAD,
        *(_line(cells) for _, cells in sorted(rows.items(), key=lambda item: item[0][:2])),
        "",
        f"{_measured(result)}, torch {torch}. Accuracy on the target's test images: mean of "
        f"{seeds} seeds ± standard deviation. Pretraining: seconds of the faster seed; *with "
        "selection cost* adds the training of the surrogate, features, scores and selection. *=* "
        "marks the control, which takes as many steps as the full source; all others make as many "
        "epochs. "
        "*Relevant*: share of the retained classes that are in the target's rendering.",
    ]
    return "\n".join(lines)


def _line(cells: dict[str, Any]) -> str:
    row = cells["linear_probe"]
    control = " *=*" if row["budget"] == "equal_iterations" else ""
    accuracies = []
    for finetuning in ("linear_probe", "full_finetuning"):
        mean = 100 * cells[finetuning]["test_accuracy_mean"]
        spread = 100 * (cells[finetuning]["test_accuracy_spread"] or 0.0)
        accuracies.append(f"{mean:.1f} ± {spread:.1f} %")
    parts = [
        NAMES[row["method"]] + control,
        f"{row['keep']:g}",
        str(row["retained_classes"]),
        f"{row['pretrain_seconds']:.1f} s",
        f"{row['speedup']:.2f}",
        f"{row['speedup_with_selection']:.2f}",
        *accuracies,
        f"{100 * row['relevant_share']:.0f} %",
    ]
    return f"| {' | '.join(parts)} |"


def loader_table(lines: list[dict[str, Any]]) -> str:
    """Return the loader benchmark's rows as a Markdown table with its caption."""
    head, *rows = lines
    caption = (
        f"{_measured(head)}, against {rows[0]['other_name']}, by `python -m benchmarks.loader`: "
        f"{MEDIANS} `PrunedLoader`."
    )
    return "\n".join([LOADER_HEAD, *(_cells(row, _loaded(row)) for row in rows), "", caption])


def writing_table(lines: list[dict[str, Any]]) -> str:
    """Return the writing benchmark's rows as a Markdown table with its caption."""
    head, *rows = lines
    caption = (
        f"{_measured(head)}, by `python -m benchmarks.writing`: {MEDIANS} ours. What is read is in "
        "memory. `write_beton` and `compact` flush to the disk before the clock stops; ffcv does "
        "not, `cp` where it says so. Memory: growth over the process and its workers. What "
        "`write_beton` needs for each image: its name and 24 bytes of numbers in the listing, 64 "
        "bytes of order and tables, and copies of some of these for a moment."
    )
    cells = [_cells(row, _written(row), row["other_name"]) for row in rows]
    return "\n".join([WRITING_HEAD, *cells, "", caption])


def scoring_table(lines: list[dict[str, Any]]) -> str:
    """Return the scoring benchmark's rows as a Markdown table with its caption."""
    head, *rows = lines
    caption = (
        f"{_measured(head)}, by `python -m benchmarks.scoring`: {MEDIANS} ours. Both sides have "
        "the same arrays and threads, and their results are compared. The published loop is "
        "measured on some images and extrapolated; a product is the fastest of numpy's, torch's "
        "and one by blocks, without votes."
    )
    cells = [_cells(row, _scored(row), row["other_name"]) for row in rows]
    return "\n".join([WRITING_HEAD, *cells, "", caption])


def _measured(head: dict[str, Any]) -> str:
    machine = head["environment"]
    return f"Measured on {machine['cores']} cores of {machine['cpu']}, GPU: {machine['gpu']}"


def _cells(row: dict[str, Any], *first: str) -> str:
    ratio = "" if row["ratio"] is None else _number(row["ratio"])
    sides = (_amount(row[side], row["unit"]) for side in ("other", "ours"))
    return f"| {' | '.join([*first, *sides, ratio])} |"


def _loaded(row: dict[str, Any]) -> str:
    params = row["params"]
    details = [
        f"{params['samples']:,} samples",
        f"keep {params['keep']:g}",
        params["order"],
        *([params["how"]] if "how" in params else []),
    ]
    return f"{FIGURES[row['figure']]} ({', '.join(details)})"


def _written(row: dict[str, Any]) -> str:
    params = row["params"]
    details = [
        *([f"{params['images']:,} images"] if "images" in params else []),
        *([f"{params['file_bytes'] / 1e6:,.0f} MB"] if "file_bytes" in params else []),
        *([params["how"]] if "how" in params else []),
        *([f"flushed: {params['flush']}"] if "flush" in params else []),
    ]
    return f"{WRITING_FIGURES[row['figure']]} ({', '.join(details)})"


def _scored(row: dict[str, Any]) -> str:
    params = row["params"]
    details = [
        *(
            f"{params[name]:,} {name}"
            for name in ("targets", "samples", "images")
            if name in params
        ),
        *([f"keep {params['keep']:g}"] if "keep" in params else []),
        *([params["how"]] if "how" in params else []),
    ]
    return f"{SCORING_FIGURES[row['figure']]} ({', '.join(details)})"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    if unit == "bytes/s":
        return f"{value / 1e9:.2f} GB/s"
    if unit == "bytes/image":
        return f"{_number(value)} bytes"
    return f"{_number(value)} {unit}" if unit in ("s", "images/s") else _number(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def fill(page: str, name: str, text: str) -> str:
    """Return a page with the text between the markers of table `name` replaced."""
    start, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    head, found, rest = page.partition(start)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"The page has no markers {start} and {end}. Put them back.")
    return f"{head}{start}\n{text}\n{end}{tail}"


def filled(page: Path) -> str:
    """Return a page with its tables made again."""
    makers: dict[str, Callable[[], str]] = {
        "methods": methods.table,
        "demo": lambda: demo_table(json.loads(KEPT.read_text())),
        "loader": lambda: loader_table(_lines(LOADER)),
        "writing": lambda: writing_table(_lines(WRITING)),
        "scoring": lambda: scoring_table(_lines(SCORING)),
    }
    for name, path in END_TO_END.items():
        if path.exists():  # not every machine has a GPU
            makers[name] = partial(_end_to_end, path)
    text = page.read_text()
    for name, make in makers.items():
        if f"<!-- {name} table -->" in text:
            text = fill(text, name, make())
    return text


def _end_to_end(path: Path) -> str:
    lines = _lines(path)
    return end_to_end_table(lines, _measured(lines[0]))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(config: Config) -> None:
    """Keep the result if one is given, and write both pages."""
    if config.result:
        write_json(KEPT, json.loads(config.result.read_text()))
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    settings = tyro.cli(Config, description=__doc__)
    with one_line_errors("benchmarks.harness.tables"):
        main(settings)
