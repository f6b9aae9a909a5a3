"""Runs of the planted benchmark, and the rows that it reports."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.rows import progress
from benchmarks.planted.report import OURS
from benchmarks.planted.runs import Job, Training, one_thread, run_all, run_job
from benchmarks.planted.scores import COMBINED, Scored, Scorer, variants, votes_of
from dp4tl_ffcv import BetonIndex, Selection, select
from writers import digits

BENCH = "planted"

AllScores = dict[tuple[str, str, int], Scored]  # by method, target and seed


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much to run."""

    methods: tuple[str, ...] = tuple(variants())
    targets: tuple[str, ...] = tuple(digits.TARGETS)
    combined: bool = True
    """Also select for all targets at once."""
    keeps: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.9)
    seeds: tuple[int, ...] = (0, 1, 2)
    surrogate_epochs: int = 8
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def all_targets(self) -> tuple[str, ...]:
        """The targets, and their combination if it is asked for."""
        return (*self.targets, COMBINED) if self.combined else self.targets

    def params(self) -> dict[str, Any]:
        """Return the settings for the head of the result file."""
        training = vars(Training(data=Path(), **self.training))
        return {
            **{name: getattr(self, name) for name in ("keeps", "seeds", "surrogate_epochs")},
            **{name: value for name, value in training.items() if name != "data"},
        }


QUICK = Scale(
    methods=("label_mapping", "feature_mapping", "random_class", "el2n"),
    targets=("target",),
    combined=False,
    keeps=(0.2, 0.4),
    seeds=(0,),
    surrogate_epochs=4,
    training={"epochs": 4, "modes": ("linear_probe",)},
)


@dataclass(frozen=True)
class Case:
    """One selection whose accuracy is reported."""

    method: str
    target: str
    keep: float
    seed: int
    job: Job
    relevant: NDArray[np.bool_]
    """Whether each sample of the source is of a relevant class `(N,)`."""
    retained: NDArray[np.int64]


def measure(scale: Scale, folder: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Score, pretrain and finetune. Yield a row for each cost, each mapping and each run."""
    one_thread()
    data = folder / "data"
    training = Training(data=data, **scale.training)
    if not all((data / f"{name}_test.beton").exists() for name in ("source", *digits.TARGETS)):
        progress("writing the betons ...")
        digits.write(digits.Config(out=data, targets=tuple(digits.TARGETS)))
    scorer = Scorer(training, folder, scale.targets, scale.surrogate_epochs, processes)
    scored = score_all(scale, scorer)
    yield from cost_rows(scored)
    cases = list(make_cases(scale, scored, scorer.index, folder))
    jobs = merge(case.job for case in cases)
    results = run_all(run_job, training, list(jobs.values()), folder / "runs", processes, "runs")
    by_run = dict(zip(jobs, results, strict=True))
    for case in cases:
        yield run_row(case, by_run[case.job.digest, case.job.seed])


def score_all(scale: Scale, scorer: Scorer) -> AllScores:
    """Return all scores. Targets and seeds share the scores that do not depend on them."""
    scored: AllScores = {}
    for method in scale.methods:
        progress(f"score by {method}")
        variant = variants()[method]
        shared: dict[tuple[str, int], Scored] = {}
        for target in scale.all_targets:
            for seed in scale.seeds:
                key = (
                    target if variant.sees_target else "",
                    seed if "seed" in variant.inputs else -1,
                )
                if key not in shared:
                    shared[key] = scorer.score(method, target, seed)
                scored[method, target, seed] = shared[key]
    return scored


def cost_rows(scored: AllScores) -> Iterator[dict[str, Any]]:
    """Yield the cost of each method, and the renderings that LM and FM map the targets to."""
    first = min(seed for _, _, seed in scored)
    for (method, target, seed), one in scored.items():
        if seed != first:
            continue
        yield {
            "figure": "cost",
            "method": method,
            "target": target,
            "unit": one.scores.unit,
            "scoring_seconds": one.seconds,
            "training_seconds": one.training_seconds,
        }
        if method in OURS and target != COMBINED:
            yield {
                "figure": "votes",
                "method": method,
                "target": target,
                "relevant": digits.TARGETS[target].rendering,
                "votes": votes_of(one.scores, list(digits.RENDERINGS)),
            }


def make_cases(scale: Scale, scored: AllScores, index: BetonIndex, folder: Path) -> Iterator[Case]:
    """Yield the full run and every selection, seed by seed."""
    labels, everything = index.labels(), np.arange(index.num_samples)
    relevant = {target: digits.relevant_classes(target)[labels] for target in scale.targets}
    relevant[COMBINED] = np.any(list(relevant.values()), axis=0)
    for seed in scale.seeds:
        for target in scale.all_targets:
            tuned = scale.targets if target == COMBINED else (target,)
            full = Job(
                selection=None, digest="full", seed=seed, targets=tuned, images=index.num_samples
            )
            yield Case("full", target, 1.0, seed, full, relevant[target], everything)
            for method in scale.methods:
                for keep in scale.keeps:
                    selection = select_share(scored[method, target, seed], index, keep)
                    digest, ids = selection.digest(), selection.indices
                    path = folder / "selections" / f"{digest[:24]}.npz"
                    if not path.exists():
                        selection.save(path)
                    job = replace(full, selection=path, digest=digest, images=len(selection))
                    yield Case(method, target, keep, seed, job, relevant[target], ids)


def select_share(scored: Scored, index: BetonIndex, keep: float) -> Selection:
    """Select a fraction of the classes or samples, or the pseudo-classes that fit into it."""
    if scored.clusters is None:
        return select(scored.scores, index, keep=keep)
    budget = round(keep * index.num_samples)
    return select(scored.scores, index, keep_samples=budget, clusters=scored.clusters)


def merge(jobs: Iterator[Job]) -> dict[tuple[str, int], Job]:
    """Return one job for each selection and seed, finetuned on all targets that need it."""
    found: dict[tuple[str, int], Job] = {}
    for job in jobs:
        before = found.setdefault((job.digest, job.seed), job)
        targets = tuple(sorted({*before.targets, *job.targets}))
        found[job.digest, job.seed] = replace(before, targets=targets)
    return found


def run_row(case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a case: relevance of its samples and accuracy, the mean over targets."""
    hits = case.relevant[case.retained].sum()
    accuracies = [result["accuracies"][target] for target in case.job.targets]
    return {
        "figure": "run",
        "method": case.method,
        "target": case.target,
        "keep": case.keep,
        "seed": case.seed,
        "classes": result["retained_classes"],
        "samples": len(case.retained),
        "precision": float(hits / len(case.retained)),
        "recall": float(hits / case.relevant.sum()),
        "accuracy": {
            mode: float(np.mean([each[mode] for each in accuracies])) for mode in accuracies[0]
        },
        "selection": case.job.digest[:24],
    }
