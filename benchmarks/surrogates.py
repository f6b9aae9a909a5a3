"""How cheap may a surrogate be? Cost and relevant classes found, by surrogate.

    python -m benchmarks.surrogates

Runs the surrogates, scores and selections of `studies/surrogates.yaml`, and one pretraining on the
full source with each seed to compare the cost with. `dp4tl study` on the same file adds the
pretraining on every selection.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dp4tl_ffcv import Selection
from dp4tl_ffcv.utils import RunFolder, atomic_open, environment, one_line_errors
from train.components.study.launchers import launcher_of, stop_on_signals
from train.components.study.plan import Plan, Run
from train.components.study.schedule import Schedule
from train.components.study.stages import Stage, with_needs
from train.configs.study import FULL, read_study
from train.configs.study import Config as StudyConfig
from writers import digits

from .harness.rows import markdown, progress

FILE = Path(__file__).parent / "studies" / "surrogates.yaml"
RESULT = Path(__file__).parent / "results" / "surrogates.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path = Path("runs/surrogates")
    """Folder of the study."""
    jobs: int | None = None
    """Stages at a time."""


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the cost of each selection in processor seconds, and the relevant classes it found."""
    relevant, rows = digits.relevant_classes(), []
    full = {run.seed: _processor_seconds(run.pretrained) for run in runs if run.method == FULL}
    for run in runs:
        if run.selection is not None:
            kept = Selection.load(run.selection.folder / "selection.npz").classes
            cost = [_processor_seconds(s) for s in with_needs([run.selection]) if s.kind != "write"]
            rows.append(
                {
                    "method": run.method,
                    "keep": run.keep,
                    "seed": run.seed,
                    "found": int(relevant[kept].sum()),
                    "relevant": int(relevant.sum()),
                    "processor_seconds": sum(cost),
                    "full_processor_seconds": full[run.seed],
                }
            )
    return rows


def _processor_seconds(stage: Stage) -> float:
    """Return the processor time of a stage without compilation."""
    result = stage.result()
    if result is None:
        raise ValueError(f"{stage.folder} is not finished. Run the command again.")
    return float(result["processor_seconds"])


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table with a row per method and surrogate, in the order of the study.

    Args:
        lines: a head with the `environment`, and rows of `rows_of`.
    """
    head, *rows = lines
    groups: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["method"]][row["keep"]].append(row)
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    cells = []
    for method, by_keep in groups.items():
        every = [row for each in by_keep.values() for row in each]
        share = np.mean([r["processor_seconds"] / r["full_processor_seconds"] for r in every])
        found = [
            f"{np.mean([row['found'] for row in by_keep[keep]]):.1f} "
            f"({', '.join(str(row['found']) for row in by_keep[keep])})"
            for keep in keeps
        ]
        speedups = [f"{1 / (keep + share):.2f}" for keep in keeps]
        cells.append([method.replace("_", " "), f"{100 * share:.0f} %", *found, *speedups])
    columns = ["method and surrogate", "cost / full pretraining"]
    columns += [f"relevant found, keep {keep:g}" for keep in keeps]
    columns += [f"speed-up with cost, keep {keep:g}" for keep in keeps]
    machine, seeds = head["environment"], len({row["seed"] for row in rows})
    return (
        f"{markdown(columns, cells)}\n\nMeasured in processor time of {machine['cores']} cores of "
        f"{machine['cpu']}, by `python -m benchmarks.surrogates`; the settings are in "
        f"`benchmarks/studies/surrogates.yaml`. {seeds} seeds; numbers in parentheses are those of "
        "each seed, and differences as large as those between seeds show nothing. "
        "*Cost*: surrogate, features, scores and selection. *Speed-up with cost* is computed, not "
        "measured: 1 / (keep + cost), if pretraining takes time in proportion to the samples. "
        "*lm*: label mapping, *fm*: feature mapping. *32px*: resnet8_w16 with six epochs at the "
        "resolution of the pretraining; "
        "*large*: batches of 64 instead of 32; *large 3*: three epochs; *half*: half of the "
        "samples, eight epochs. The demo takes *16px large*."
    )


def main(config: Config) -> None:
    """Run what is missing, print the table and write the rows."""
    arguments = StudyConfig(file=FILE, out=config.out, jobs=config.jobs)
    described = read_study(FILE)
    runs = Plan(described, FILE.parent, arguments.folder).runs
    # The lock and the settings of `dp4tl study`: both cannot work in one folder at a time.
    RunFolder(arguments.folder, {"study": asdict(described)}, overwrite=True).start(resume=True)
    stages = with_needs(run.selection or run.pretrained for run in runs)
    schedule = Schedule(stages, retry_failed=True)
    with stop_on_signals(), launcher_of(arguments, arguments.folder) as launcher:
        for stage, error in schedule.run(launcher):
            progress(f"{stage.kind}/{stage.key} {error or 'finished'}")
    if schedule.errors:
        raise ValueError(next(iter(schedule.errors.values())))
    rows = rows_of(runs)
    lines = [{"environment": environment()}, *rows]
    with atomic_open(RESULT) as stream:
        stream.writelines((json.dumps(line) + "\n").encode() for line in lines)
    print(table(lines))


if __name__ == "__main__":
    settings = tyro.cli(Config, prog="python -m benchmarks.surrogates", description=__doc__)
    with one_line_errors():
        main(settings)
