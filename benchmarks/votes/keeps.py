"""Compare what `keep="auto"` keeps with the accuracies that studies measured.

    python -m benchmarks.votes.keeps --studies planted.yaml runs/planted glyphs.yaml runs/glyphs

Runs of label mapping and feature mapping at equal epochs count. Figures:

* `loss`: the mean difference of the accuracy to that of the full source at each fraction kept, and
  the mean share of the target that the fraction leaves uncovered (1 - expected coverage).
* `slope`: accuracy lost per uncovered share, fitted through the origin by least squares, where at
  most a fifth of the target is uncovered.
* `automatic`: what `auto` keeps with a coverage that the study did not choose: the steepest slope
  of all other studies loses one point at it. The accuracy is interpolated between those of the
  measured fractions, seed by seed: its interval is somewhat too narrow, and a loss that grows
  faster at small fractions is overstated. `best` is the smallest fraction that is without loss at
  it and at every larger one.
* `measured`: the same of the study's own runs with the fraction `auto`, if it has any.
* `saved`: fraction of the source that is pruned, relative to that of the best fraction, as a ratio
  of sums over the tasks with 8 seeds. No task counts for more than its best fraction prunes. With
  the mode `all`, the best fraction is without loss in every mode. Where `auto` keeps everything, as
  for too few images, `verdicts` count "nothing pruned" and not "no loss".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.harness.rows import Row, publish
from dp4tl_ffcv import Features, Scores, feature_mapping, label_mapping
from dp4tl_ffcv.report.names import MARGIN
from dp4tl_ffcv.report.rule import Comparison, compare, smallest_keep
from dp4tl_ffcv.scoring.votes import expected_coverage
from dp4tl_ffcv.selection.automatic import LEAST_COVERAGE, automatic_keep
from dp4tl_ffcv.selection.budgets import part_of
from dp4tl_ffcv.utils import one_line_errors
from train.components.study.plan import Plan, Run
from train.components.study.results import rows_of
from train.configs.study import AUTO, FEWEST_SEEDS, FULL, read_study

METHODS = ("label_mapping", "feature_mapping")
MOST_UNCOVERED = 0.2
BySeed = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    studies: tuple[tuple[Path, Path], ...]
    """Study files, each followed by the folder of its stages."""
    out: Path | None = None
    """File for the rows (.jsonl)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A target and a method of a study."""

    about: Mapping[str, str]
    """Study, target and method."""
    step: float
    """Smallest change of an accuracy."""
    scores: dict[int, Scores] = field(default_factory=dict)
    """Scores by votes, by seed."""
    differences: dict[str, dict[float, BySeed]] = field(default_factory=dict)
    """Accuracy minus that of the full source, by mode, fraction kept and seed."""
    chosen: BySeed = field(default_factory=dict)
    """Fraction that runs with the fraction `auto` kept, by seed."""
    of_chosen: dict[str, BySeed] = field(default_factory=dict)
    """Differences of runs with the fraction `auto`, by mode and seed."""

    @property
    def votes(self) -> list[Any]:
        """The votes of each seed."""
        return [one.votes for one in self.scores.values()]

    def coverages(self) -> list[NDArray[np.float64]]:
        """Return the expected coverage of the K best classes `(C,)`, for each seed."""
        return [expected_coverage([one]) for one in self.scores.values()]

    def compared(self, mode: str) -> dict[float, Comparison]:
        """Return the comparison at each fraction, ascending."""
        by_keep = sorted(self.differences[mode].items())
        return {keep: compare(list(each.values()), self.step) for keep, each in by_keep}

    def uncovered(self) -> dict[float, float]:
        """Return the mean uncovered share at each fraction."""
        covered = np.mean(self.coverages(), axis=0)
        keeps = {keep for by_keep in self.differences.values() for keep in by_keep}
        return {keep: float(1 - covered[part_of(keep, len(covered)) - 1]) for keep in keeps}

    def slope(self, mode: str) -> float | None:
        """Return the accuracy lost per uncovered share; None if the votes say too little."""
        if any(each.problem for each in self.votes):
            return None
        shares = self.uncovered()
        pairs = [(shares[keep], -each.mean) for keep, each in self.compared(mode).items()]
        near = np.array([pair for pair in pairs if 0 < pair[0] <= MOST_UNCOVERED])
        return float(near[:, 0] @ near[:, 1] / (near[:, 0] @ near[:, 0])) if len(near) else None

    def automatic(self, least_coverage: float) -> BySeed:
        """Return the fraction that `auto` keeps if a coverage is enough, by seed."""
        return {
            seed: automatic_keep([one], least_coverage=least_coverage)[0]
            for seed, one in self.scores.items()
        }

    def between(self, keeps: BySeed, mode: str) -> Comparison | None:
        """Return the comparison at a fraction for each seed, between the measured ones.

        Seeds whose fraction is below all measured ones do not count. None if no seed counts.
        """
        found = []
        for seed, keep in keeps.items():
            by_keep = sorted(self.differences[mode].items())
            at = [(k, each[seed]) for k, each in by_keep if seed in each] + [(1.0, 0.0)]
            if keep >= at[0][0]:
                found.append(float(np.interp(keep, *zip(*at, strict=True))))
        return compare(found, self.step) if found else None


def tasks_of(file: Path, folder: Path) -> list[Task]:
    """Return the tasks of a study, with the runs that are finished."""
    runs = [
        run
        for run in Plan(read_study(file), file.absolute().parent, folder.absolute()).runs
        if run.budget == "equal_epochs" and run.target == run.scored_on
        if run.method in (FULL, *METHODS) and run.finetuned.result() is not None
    ]
    tasks: dict[tuple[str, str], Task] = {}
    full: dict[tuple[str, str, int], float] = {}
    for run, row in zip(runs, rows_of(runs), strict=True):
        place = (run.target, run.mode, run.seed)
        if run.method == FULL:
            full[place] = row["test_accuracy"]
            continue
        if place not in full:
            continue
        about = {"study": file.stem, "target": run.target, "method": run.method}
        task = tasks.setdefault(
            (run.target, run.method), Task(about=about, step=1 / row["test_images"])
        )
        if run.seed not in task.scores:
            task.scores[run.seed] = _scores(run)
        if run.keep == AUTO:
            task.chosen[run.seed] = row["kept"]
            by_seed = task.of_chosen.setdefault(run.mode, {})
        else:
            by_seed = task.differences.setdefault(run.mode, {}).setdefault(run.keep, {})
        by_seed[run.seed] = row["test_accuracy"] - full[place]
    return list(tasks.values())


def _scores(run: Run) -> Scores:
    """Return the scores of a run, computed again: older files lack facts of the votes."""
    if run.selection is None:
        raise ValueError(f"a run of {run.method} has no selection.")
    needs = run.selection.needs["scores"].needs
    target = Features.load(needs["target"].folder / "features")
    if "source" in needs:
        return feature_mapping(target, Features.load(needs["source"].folder / "features"))
    return label_mapping(target)


def rows(tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield the rows of all tasks, and the sums."""
    for task in tasks:
        shares = task.uncovered()
        for mode in task.differences:
            about = {**task.about, "mode": mode}
            for keep, each in task.compared(mode).items():
                place = {**about, "keep": keep, "uncovered": shares[keep]}
                yield {"figure": "loss", **place, **_shown(each)}
            if (slope := task.slope(mode)) is not None:
                yield {"figure": "slope", **about, "slope": slope}
    judged = [row for task in tasks for row in _judged(task, tasks)]
    yield from judged
    for figure in ("automatic", "measured"):
        yield from _saved([row for row in judged if row["figure"] == figure])


def _judged(task: Task, tasks: Sequence[Task]) -> Iterator[Row]:
    """Yield how `auto` does with the coverage of the other studies, and in the study's runs."""
    slopes = [
        slope
        for each in tasks
        for mode in each.differences
        if each.about["study"] != task.about["study"] and (slope := each.slope(mode)) is not None
    ]
    steepest = max(slopes, default=0.0)
    least = 1 - MARGIN / steepest if steepest > MARGIN else LEAST_COVERAGE
    keeps = task.automatic(least)
    votes = {
        "images": min(each.images for each in task.votes),
        "label_information": _range(each.label_information for each in task.votes),
        "confidence": _range(each.confidence for each in task.votes),
    }
    for mode in task.differences:
        about = {**task.about, "mode": mode, **votes}
        verdicts = {keep: each.verdict for keep, each in task.compared(mode).items()}
        best = {"best": smallest_keep(verdicts) or 1.0}
        found = {"least_coverage": least, "keep": _range(keeps.values()), **best}
        if (between := task.between(keeps, mode)) is not None:
            yield {"figure": "automatic", **about, **found, **_shown(between)}
        if mode in task.of_chosen:
            each = compare(list(task.of_chosen[mode].values()), task.step)
            yield {
                "figure": "measured",
                **about,
                "keep": _range(task.chosen.values()),
                **best,
                **_shown(each),
            }


def _range(values: Iterable[float | None]) -> list[float] | None:
    """Return the smallest value, the mean and the largest; None if none is known."""
    known = [value for value in values if value is not None]
    return [min(known), float(np.mean(known)), max(known)] if known else None


def _shown(each: Comparison) -> Row:
    facts = {"seeds": each.seeds, "difference": each.mean, "low": each.low, "high": each.high}
    bounded = {name: fact if np.isfinite(fact) else None for name, fact in facts.items()}
    return {**bounded, "verdict": each.verdict}


def _saved(judged: Sequence[Row]) -> Iterator[Row]:
    """Yield what `auto` prunes relative to the best fraction.

    For each mode; for all comparisons (`each`); and relative to the best fraction for all modes of
    a task at once (`all`). What loses earns nothing.
    """
    whole = [row for row in judged if row["seeds"] >= FEWEST_SEEDS]
    modes = list(dict.fromkeys(row["mode"] for row in whole))
    for name in (*modes, "each", "all"):
        chosen = [row for row in whole if name in (row["mode"], "each", "all")]
        tasks = [[row] for row in chosen]
        if name == "all":
            tasks = [list(group) for _, group in groupby(chosen, _task)]
        best = [1 - max(row["best"] for row in task) for task in tasks]
        auto = [
            0.0 if any(row["verdict"] == "loss" for row in task) else 1 - task[0]["keep"][1]
            for task in tasks
        ]
        if sum(best):
            verdicts = [
                row["verdict"] if row["keep"][0] < 1 else "nothing pruned" for row in chosen
            ]
            yield {
                "figure": "saved",
                "of": whole[0]["figure"],
                "mode": name,
                "tasks": len(tasks),
                "ratio": sum(map(min, auto, best)) / sum(best),
                "verdicts": {each: verdicts.count(each) for each in dict.fromkeys(verdicts)},
            }


def _task(row: Row) -> tuple[str, str, str]:
    return row["study"], row["target"], row["method"]


def main(config: Config) -> None:
    """Compare and publish."""
    with catch_warnings():
        simplefilter("ignore")  # the rows say what the warnings say
        tasks = [task for pair in config.studies for task in tasks_of(*pair)]
        publish(rows(tasks), "votes_keeps", (), config.out)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors(config):
        main(config)
