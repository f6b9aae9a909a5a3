"""The source, the scores and the selections that the figures of the planted benchmark share."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.bench import BaseBench
from benchmarks.harness.rows import Row, progress
from benchmarks.planted.runs import Job, Runs, Scale, one_thread
from benchmarks.planted.scores import Scored, Scorer
from benchmarks.planted.variants import COMBINED, variants
from dp4tl_ffcv import BetonIndex, Selection, select
from writers import digits

DETAILS = ()
SCALES = (Scale(),)
QUICK = (
    Scale(
        folder="planted_quick",
        methods=("label_mapping", "feature_mapping", "random_class", "el2n"),
        targets=("target",),
        combined=False,
        keeps=(0.2, 0.4),
        seeds=(0,),
        surrogate_epochs=4,
        epochs=4,
        modes=("linear_probe",),
        processes=1,  # each process compiles, which would take longer than the few runs
    ),
)


class Bench(BaseBench[Scale]):
    def about(self) -> dict[str, Any]:
        return {"params": asdict(self.scale)}

    @property
    def folder(self) -> Path:
        return self.data / self.scale.folder

    @property
    def runs(self) -> Runs:
        return Runs(self.scale, self.folder)

    @property
    def targets(self) -> tuple[str, ...]:
        return (*self.scale.targets, *([COMBINED] if self.scale.combined else []))

    @cached_property
    def index(self) -> BetonIndex:
        data = self.folder / "data"
        if not all((data / f"{name}_test.beton").exists() for name in ("source", *digits.TARGETS)):
            digits.write(digits.Config(out=data, targets=tuple(digits.TARGETS)))
        return BetonIndex.open(data / "source_train.beton")

    @cached_property
    def scored(self) -> dict[tuple[str, str, int], Scored]:
        """Scores by method, target and seed, shared where they do not depend on target or seed."""
        one_thread()
        scorer = Scorer(self.runs, self.index)
        scored: dict[tuple[str, str, int], Scored] = {}
        for method in self.scale.methods:
            progress(f"score by {method}")
            variant = variants()[method]
            for target, seed in product(self.targets, self.scale.seeds):
                shared = (
                    method,
                    target if variant.sees_target else self.targets[0],
                    seed if "seed" in variant.inputs else self.scale.seeds[0],
                )
                if shared not in scored:
                    scored[shared] = scorer.score(*shared)
                scored[method, target, seed] = scored[shared]
        return scored

    def first_scores(self) -> Iterator[tuple[str, str, Scored]]:
        for (method, target, seed), scored in self.scored.items():
            if seed == self.scale.seeds[0]:
                yield method, target, scored

    def cases(self) -> Iterator[tuple[Row, Job]]:
        """Yield the full run and every selection, seed by seed, with the row that it begins."""
        labels, everything = self.index.labels(), np.arange(self.index.num_samples)
        relevant = {name: digits.relevant_classes(name)[labels] for name in self.scale.targets}
        relevant[COMBINED] = np.any(list(relevant.values()), axis=0)
        for seed, target in product(self.scale.seeds, self.targets):
            tuned = self.scale.targets if target == COMBINED else (target,)
            about = {"figure": "run", "method": "full", "target": target, "keep": 1.0, "seed": seed}
            full = Job(None, "full", seed, tuned)
            yield {**about, **relevance(everything, relevant[target])}, full
            for method, keep in product(self.scale.methods, self.scale.keeps):
                selection = self.select(self.scored[method, target, seed], keep)
                digest = selection.digest()
                path = self.folder / "selections" / f"{digest[:24]}.npz"
                selection.save(path)
                row = {**about, "method": method, "keep": keep}
                found = relevance(selection.indices, relevant[target])
                yield {**row, **found}, Job(path, digest, seed, tuned)

    def select(self, scored: Scored, keep: float) -> Selection:
        """Select a fraction of the classes or samples, or the pseudo-classes that fit into it."""
        if scored.clusters is None:
            return select(scored.scores, self.index, keep=keep)
        budget = round(keep * self.index.num_samples)
        return select(scored.scores, self.index, keep_samples=budget, clusters=scored.clusters)


def relevance(retained: NDArray[np.int64], relevant: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how many samples are retained, and precision and recall of the relevant."""
    hits = relevant[retained].sum()
    return {
        "samples": len(retained),
        "precision": float(hits / len(retained)),
        "recall": float(hits / relevant.sum()),
    }
