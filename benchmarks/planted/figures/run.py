"""Relevance of the samples that each method selects, and accuracy of pretraining on them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.harness.rows import Row
from benchmarks.planted.bench import Bench, Case
from benchmarks.planted.runs import merge


def measure(bench: Bench) -> Iterator[Row]:
    cases = list(bench.cases())
    jobs = merge(case.job for case in cases)
    results = bench.runs.do_all(list(jobs.values()), "runs")
    by_run = dict(zip(jobs, results, strict=True))
    for case in cases:
        yield run_row(case, by_run[case.job.digest, case.job.seed])


def run_row(case: Case, result: dict[str, Any]) -> Row:
    """Return the row of a case: relevance of its samples and accuracy, the mean over targets."""
    hits = case.relevant[case.retained].sum()
    tuned = [result["tuned"][target] for target in case.job.targets]
    return {
        "figure": "run",
        "method": case.method,
        "target": case.target,
        "keep": case.keep,
        "seed": case.job.seed,
        "classes": result["pretrained"]["retained_classes"],
        "samples": len(case.retained),
        "precision": float(hits / len(case.retained)),
        "recall": float(hits / case.relevant.sum()),
        "accuracy": {
            mode: float(np.mean([modes[mode]["test_accuracy"] for modes in tuned]))
            for mode in tuned[0]
        },
        "selection": case.job.digest[:24],
    }
