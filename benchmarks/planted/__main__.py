"""Does it find the right classes? All methods on targets whose relevant classes are known.

    python -m benchmarks.planted             # all runs, into benchmarks/results/planted.jsonl
    python -m benchmarks.planted --quick     # a few of them, printed only
    python -m benchmarks.planted --report    # table and figure from the results, nothing is run

The source is `writers.digits`: ten digits in eight renderings. Each method scores its classes or
samples; the best are pretrained on, in as many epochs as the full source, and finetuned on the
target. Runs that are finished are taken over by the next call.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.harness.rows import progress
from benchmarks.planted.report import OURS, write_report
from benchmarks.planted.runs import Job, Training, one_thread, run_all, run_job
from benchmarks.planted.scores import COMBINED, Scored, Scorer, variants, votes_of
from dp4tl_ffcv import BetonIndex, Selection, select
from dp4tl_ffcv.utils import atomic_open, environment, one_line_errors
from writers import digits

BENCH = "planted"
RESULTS = Path(__file__).resolve().parents[1] / "results" / "planted.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to run."""

    quick: bool = False
    """Run a few methods on one target with one seed, in less than 90 seconds; printed only."""
    report: bool = False
    """Run nothing; make the table and the figure of `benchmarks/README.md` from the results."""
    data: Path = Path("runs/planted")
    """Folder that keeps betons, scores and finished runs."""
    processes: int = 2
    """Runs at a time, each on one core."""
    out: Path | None = None
    """Where the JSON lines go as well; None keeps those of a full run."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much to run."""

    methods: tuple[str, ...] = tuple(variants())
    targets: tuple[str, ...] = tuple(digits.TARGETS)
    combined: bool = True
    """All targets at once as well."""
    keeps: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.9)
    seeds: tuple[int, ...] = (0, 1, 2)
    surrogate_epochs: int = 8
    training: dict[str, Any] = field(default_factory=dict)


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
    """One selection whose accuracy is wanted."""

    method: str
    target: str
    keep: float
    seed: int
    job: Job
    relevant: NDArray[np.bool_]
    """Which samples of the source are of relevant classes `(N,)`."""
    retained: NDArray[np.int64]


def measure(scale: Scale, folder: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Score, pretrain, finetune; yield a row for each cost, each mapping and each run."""
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
    jobs = list(merged(case.job for case in cases).values())
    results = run_all(run_job, training, jobs, folder / "runs", processes, "runs")
    by_run = {(job.digest, job.seed): result for job, result in zip(jobs, results, strict=True)}
    for case in cases:
        yield run_row(case, by_run[case.job.digest, case.job.seed])


def targets_of(scale: Scale) -> tuple[str, ...]:
    """Return the targets, and their union if it is asked for."""
    return (*scale.targets, *((COMBINED,) if scale.combined else ()))


def score_all(scale: Scale, scorer: Scorer) -> dict[tuple[str, str, int], Scored]:
    """Return the scores by method, target and seed; what does not depend on one is shared."""
    scored: dict[tuple[str, str, int], Scored] = {}
    for method in scale.methods:
        progress(f"score by {method}")
        shared: dict[tuple[str, int], Scored] = {}
        for target in targets_of(scale):
            for seed in scale.seeds:
                variant = variants()[method]
                drawn = seed if "seed" in variant.inputs else -1
                key = (target if variant.sees_target else "", drawn)
                if key not in shared:
                    shared[key] = scorer.of(method, target, seed)
                scored[method, target, seed] = shared[key]
    return scored


def cost_rows(scored: dict[tuple[str, str, int], Scored]) -> Iterator[dict[str, Any]]:
    """Yield what each method cost, and which renderings LM and FM map the targets to."""
    first = min(seed for _, _, seed in scored)
    for (method, target, seed), one in scored.items():
        if seed != first:
            continue
        yield {
            "bench": BENCH,
            "figure": "cost",
            "method": method,
            "target": target,
            "unit": one.scores.unit,
            "scoring_seconds": one.seconds,
            "training_seconds": one.training_seconds,
        }
        if method in OURS and target != COMBINED:
            votes = votes_of(one.scores, list(digits.RENDERINGS))
            yield {
                "bench": BENCH,
                "figure": "votes",
                "method": method,
                "target": target,
                "relevant": digits.TARGETS[target].rendering,
                "votes": votes,
            }


def make_cases(
    scale: Scale, scored: dict[tuple[str, str, int], Scored], index: BetonIndex, folder: Path
) -> Iterator[Case]:
    """Yield the full run and every selection, seed by seed."""
    labels, everything = index.labels(), np.arange(index.num_samples)
    relevant = {target: digits.relevant_classes(target)[labels] for target in scale.targets}
    relevant[COMBINED] = np.any(list(relevant.values()), axis=0)
    for seed in scale.seeds:
        for target in targets_of(scale):
            tuned = scale.targets if target == COMBINED else (target,)
            full = Job(
                selection=None, digest="full", seed=seed, targets=tuned, images=index.num_samples
            )
            yield Case("full", target, 1.0, seed, full, relevant[target], everything)
            for method in scale.methods:
                for keep in scale.keeps:
                    selection = selected(scored[method, target, seed], index, keep)
                    path = folder / "selections" / f"{selection.digest()[:24]}.npz"
                    if not path.exists():
                        selection.save(path)
                    job = Job(
                        selection=path,
                        digest=selection.digest(),
                        seed=seed,
                        targets=tuned,
                        images=len(selection),
                    )
                    ids = selection.indices
                    yield Case(method, target, keep, seed, job, relevant[target], ids)


def selected(scored: Scored, index: BetonIndex, keep: float) -> Selection:
    """Select a share of the classes or samples; of pseudo-classes, those that fit in the share."""
    if scored.clusters is None:
        return select(scored.scores, index, keep=keep)
    budget = round(keep * index.num_samples)
    return select(scored.scores, index, keep_samples=budget, clusters=scored.clusters)


def merged(jobs: Iterator[Job]) -> dict[tuple[str, int], Job]:
    """Return one job for each selection and seed, finetuned on all targets that want it."""
    found: dict[tuple[str, int], Job] = {}
    for job in jobs:
        before = found.setdefault((job.digest, job.seed), job)
        targets = tuple(sorted({*before.targets, *job.targets}))
        found[job.digest, job.seed] = replace(before, targets=targets)
    return found


def run_row(case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """Return what a selection held and how its network did, on the mean of several targets."""
    hits = case.relevant[case.retained].sum()
    of_targets = [result["accuracies"][target] for target in case.job.targets]
    return {
        "bench": BENCH,
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
            mode: float(np.mean([one[mode] for one in of_targets])) for mode in of_targets[0]
        },
        "selection": case.job.digest[:24],
    }


def main(config: Config) -> None:
    """Run what is not finished, print and keep the rows, or make the report."""
    if config.report:
        progress(f"written to {write_report(config.out or RESULTS)}")
        return
    scale = QUICK if config.quick else Scale()
    folder = config.data / "quick" if config.quick else config.data
    # One process compiles what it runs once: less in all where little is run.
    processes = 1 if config.quick else config.processes
    out = config.out or (None if config.quick else RESULTS)
    head = {
        "bench": BENCH,
        "environment": environment(),
        "params": {
            **{name: getattr(scale, name) for name in ("keeps", "seeds", "surrogate_epochs")},
            **{
                name: value
                for name, value in vars(Training(data=Path(), **scale.training)).items()
                if name != "data"
            },
        },
    }
    lines = [json.dumps(head)]
    for row in measure(scale, folder, processes):
        lines.append(json.dumps(rounded(row)))
        print(lines[-1], flush=True)
    if out:
        with atomic_open(out) as stream:
            stream.write("".join(f"{line}\n" for line in lines).encode())
        progress(f"written to {out}")


def rounded(value: Any) -> Any:
    """Keep six digits: more say nothing."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return {key: rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    with one_line_errors("benchmarks.planted"):
        main(tyro.cli(Config, description=__doc__))
