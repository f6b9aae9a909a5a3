"""Show the whole path on real images: write, score, select, pretrain, finetune, compare.

    dp4tl demo            # or, in a clone: make demo

The target has ten classes of handwritten digits, which resemble ten of the source's eighty classes
(see `dp4tl write digits --help`). The scoring methods must find those ten. The demo is a study of
`dp4tl study`: `configs/studies/demo.yaml` is its file, to copy and change. It prints a table and
writes `report.html`. Running it again reuses all finished stages.
"""

import tyro

from dp4tl_ffcv.utils import one_line_errors

from .configs.demo import Config

if __name__ == "__main__":  # before the imports below, which take seconds
    arguments = tyro.cli(Config, description=__doc__)

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dp4tl_ffcv import Selection
from dp4tl_ffcv.writers import digits

from .components.study.plan import Plan, Run
from .components.study.stages import with_needs
from .configs.study import read_study
from .study import study


def run_demo(config: Config) -> Path | None:
    """Run the unfinished stages and return the path of the report, or None if no run finished."""
    runs = Plan(read_study(config.file), config.file.parent, config.folder).runs
    if config.fresh:
        for stage in with_needs(run.finetuned for run in runs):
            if stage.folder.exists():
                shutil.rmtree(stage.folder)
    if not study(config):
        return None
    print(f"\n{found_by(runs)}")
    return config.folder / "report.html"


def found_by(runs: Sequence[Run]) -> str:
    """Return how many of the relevant classes each selection rule retains, as a table."""
    relevant = digits.relevant_classes()
    found: dict[tuple[str, object], dict[int, int]] = {}
    for run in runs:
        if run.selection is not None and run.selection.result() is not None:
            selection = Selection.load(run.selection.folder / "selection.npz")
            count = int(relevant[selection.classes].sum())
            found.setdefault((run.method, run.keep), {})[run.seed] = count
    lines = [f"{'method':<18}{'keep':>6}  relevant classes found, of {relevant.sum()}"]
    for (method, keep), by_seed in found.items():
        counts = list(by_seed.values())
        lines.append(
            f"{method:<18}{keep:>6}  {np.mean(counts):.1f} ({', '.join(map(str, counts))})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors(arguments):
        if (report := run_demo(arguments)) is not None:
            print(f"\n{report}")
