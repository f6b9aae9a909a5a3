"""Samples per class, against `numpy.bincount`."""

from functools import partial

import numpy as np

from benchmarks.harness.bench import CORES
from benchmarks.harness.rows import Row
from benchmarks.scoring.bench import CLASSES, Bench, compare_pairs
from dp4tl_ffcv.kernels import class_histogram


def measure(bench: Bench) -> list[Row]:
    rows = []
    for shuffled in (True, False):
        labels = bench.labels(shuffled=shuffled)
        sides = {
            "ours": partial(class_histogram, labels, CLASSES),
            "numpy.bincount": partial(np.bincount, labels, minlength=CLASSES),
        }
        params = {
            "samples": len(labels),
            "threads": CORES,
            "how": "shuffled" if shuffled else "in order of the classes",
            "bounded_by": "one addition in memory per label",
        }
        rounds = bench.scale.short_rounds
        rows.append(compare_pairs("histogram", "the counts", sides, rounds, **params))
    return rows
