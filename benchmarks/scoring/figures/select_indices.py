"""Sample ids of the retained classes, against `torch.isin`."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.bench import CORES
from benchmarks.harness.dataset import write_tables
from benchmarks.harness.rows import Row
from benchmarks.scoring.bench import CLASSES, Bench, Sides, compare_pairs
from dp4tl_ffcv import BetonIndex, Scores, Selection, select
from dp4tl_ffcv.kernels import class_members

KEEP = 0.9


def measure(bench: Bench) -> list[Row]:
    index = BetonIndex.open(write_tables(bench.scale.samples, bench.data))
    classes = np.random.default_rng(0).permutation(CLASSES)[: round(KEEP * CLASSES)]
    wanted, labels = torch.from_numpy(classes), index.labels()
    tensor, _ = torch.from_numpy(labels), index.fingerprint

    def members() -> Any:
        retained = np.zeros(CLASSES, dtype=np.bool_)
        retained[classes] = True
        return class_members(labels, retained)

    from_labels: Sides = {
        "ours": members,
        "torch.isin, nonzero": partial(torch_members, tensor, wanted),
    }
    from_tables: Sides = {
        "ours": lambda: Selection.of_classes(index, classes).indices,
        "torch.isin, nonzero": lambda: torch_members(torch.from_numpy(index.labels()), wanted),
    }
    is_wanted = np.isin(np.arange(CLASSES), classes).astype(np.float64)
    scores = Scores(method="class_list", scores=is_wanted)
    from_scores: Sides = {
        "ours": lambda: select(scores, index, keep=KEEP).indices,
        "torch.isin, nonzero": from_tables["torch.isin, nonzero"],
    }
    params = {"samples": len(labels), "keep": KEEP, "classes": CLASSES, "threads": CORES}
    rounds = bench.scale.short_rounds
    return [
        compare_pairs(
            "select_indices", "the samples", sides, rounds, **params, how=how, bounded_by=bound
        )
        for how, sides, bound in (
            ("from labels", from_labels, "reading the labels twice and writing the ids"),
            ("from a beton's tables to a Selection", from_tables, "gathering the labels, twice"),
            ("by class scores to a Selection", from_scores, "gathering the labels, twice"),
        )
    ]


def torch_members(labels: Tensor, classes: Tensor) -> NDArray[np.int64]:
    members: NDArray[np.int64] = torch.isin(labels, classes).nonzero()[:, 0].numpy()
    return members
