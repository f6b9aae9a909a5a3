"""Write the README's demo table from the result file of a demo run.

    python -m train.demo --fresh
    python -m benchmarks.readme --result runs/demo/result.json

keeps the result in `benchmarks/results/demo.json` and puts its table into the README.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from dp4tl_ffcv import one_line_errors, write_json

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "demo.json"
START, END = "<!-- demo table -->", "<!-- end of demo table -->"
NAMES = {"full": "full source", "lm": "LM", "fm": "FM", "random": "random"}
HEAD = (
    "| selection | keep | classes | pretraining | speed-up | with selection cost | linear probe "
    "| full finetuning | relevant |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write."""

    result: Path | None = None
    """A demo's result.json to keep; None writes the table of the one that is kept."""


def table(result: dict[str, Any]) -> str:
    """Return the demo's rows as a Markdown table with its caption."""
    rows: dict[tuple[str, float, str], dict[str, Any]] = {}
    for row in result["rows"]:
        rows.setdefault((row["budget"], -row["keep"], row["method"]), {})[row["finetuning"]] = row
    machine, seeds = result["environment"], len(result["seeds"])
    lines = [
        HEAD,
        *(_line(cells) for _, cells in sorted(rows.items(), key=lambda item: item[0][:2])),
        "",
        f"Measured on {machine['cores']} cores of {machine['cpu']}, GPU: {machine['gpu']}, torch "
        f"{machine['torch']}. Accuracy on the target's test images: mean of {seeds} seeds ± "
        "standard deviation. Pretraining: seconds of the faster seed; *with selection cost* adds "
        "the training of the surrogate, features, scores and selection. *=* marks the control, "
        "which takes as many steps as the full source; all others make as many epochs. "
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


def fill(readme: str, result: dict[str, Any]) -> str:
    """Return the README with the table between its two markers replaced."""
    head, start, rest = readme.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        raise ValueError(f"`readme` must hold {START} and {END}; got neither. Put them back.")
    return f"{head}{START}\n{table(result)}\n{END}{tail}"


def main(config: Config) -> None:
    """Keep the result that was asked for, and write the README."""
    if config.result:
        write_json(KEPT, json.loads(config.result.read_text()))
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), json.loads(KEPT.read_text())))


if __name__ == "__main__":
    settings = tyro.cli(Config, description=__doc__)
    with one_line_errors("benchmarks.readme"):
        main(settings)
