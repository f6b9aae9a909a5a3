"""Relevance of the samples that each method selects, and accuracy of pretraining on them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.harness.rows import Row
from benchmarks.planted.bench import Bench
from benchmarks.planted.runs import Job, merge


def measure(bench: Bench) -> Iterator[Row]:
    cases = list(bench.cases())
    jobs = merge(job for _, job in cases)
    results = bench.runs.do_all(list(jobs.values()), "runs")
    by_run = dict(zip(jobs, results, strict=True))
    for row, job in cases:
        yield {**row, **outcome(job, by_run[job.digest, job.seed])}


def outcome(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a row that follow from a run. Accuracy is the mean over targets."""
    tuned = [result["tuned"][target] for target in job.targets]
    return {
        "classes": result["pretrained"]["retained_classes"],
        "accuracy": {
            mode: float(np.mean([modes[mode]["test_accuracy"] for modes in tuned]))
            for mode in tuned[0]
        },
        "selection": job.digest[:24],
    }
