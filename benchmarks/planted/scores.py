"""Scores of the planted benchmark: every method on the same surrogate, with its cost."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.rows import progress
from benchmarks.planted.encoder import train_encoder
from benchmarks.planted.runs import Job, Runs, quiet
from benchmarks.planted.variants import COMBINED, Variant, variants
from dp4tl_ffcv import (
    BetonIndex,
    Clusters,
    Features,
    Scores,
    Selection,
    cluster,
    combine_scores,
    extract_features,
    load_checkpoint,
)
from dp4tl_ffcv.scoring import score
from dp4tl_ffcv.utils import Classifier
from train import pretrain

NUM_CLUSTERS = 80
INFLUENCE_SEED = 5000
# Parts that are trained. Features and clusters are not.
TRAINED = {"surrogate", "encoder", "influence runs"}

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Scored:
    """Scores of one variant, for one target or for all."""

    scores: Scores
    seconds: float
    """Seconds of features, clusters and scoring, without training a network."""
    training_seconds: float
    """Seconds of training the surrogate, the encoder or the influence runs."""
    clusters: Clusters | None
    """Pseudo-classes that were scored."""


@dataclass
class Scorer:
    """Scores of every variant. The parts that variants share are made once."""

    runs: Runs
    index: BetonIndex
    parts: dict[str, tuple[Any, float]] = field(default_factory=dict)
    """Shared parts, and the seconds that each took, by name."""
    used: set[str] = field(default_factory=set)
    """Names of the parts that the current variant has used."""

    def score(self, name: str, target: str, seed: int) -> Scored:
        variant, targets = variants()[name], self.runs.scale.targets
        if not self.parts:  # compiles, which counts for no variant
            self._extract(self.surrogate(), targets[0], "train", "warm_up")
        self.used.clear()
        several = target == COMBINED and variant.sees_target
        found: list[Scores] = []
        seconds, inputs = 0.0, dict[str, Any]()
        for one in targets if several else (target,):
            inputs = self._inputs(variant, one, seed)
            scores, spent = timed(partial(variant.method.function, **inputs))
            found.append(scores)
            seconds += spent
        if several:
            # Negative scores have no sum to be divided by.
            how: Any = "rank" if any((each.scores < 0).any() for each in found) else "sum"
            scores, spent = timed(partial(combine_scores, found, combine=how))
            seconds += spent
        return Scored(
            scores,
            seconds + self._seconds(self.used - TRAINED),
            self._seconds(self.used & TRAINED),
            inputs.get("clusters") if scores.unit == "class" else None,
        )

    def _inputs(self, variant: Variant, target: str, seed: int) -> dict[str, Any]:
        given: dict[str, Callable[[], Any]] = {
            "target": lambda: self.features(variant.encoder, target),
            "source": lambda: self.features(variant.encoder, "source"),
            "outcomes": lambda: self.influences()[1][target],
            "included": lambda: self.influences()[0],
            "models": lambda: [self.surrogate()],
            "dynamics": self.dynamics,
            "beton": lambda: self.index,
            "difficulty": lambda: score("el2n", source=self.features("surrogate", "source")),
            "seed": lambda: seed,
            "resolution": lambda: self.runs.scale.resolution,
            "crop_ratio": lambda: 1.0,
        }
        if variant.clusters or "clusters" in variant.method.required:
            given["clusters"] = lambda: self.clusters(variant.encoder)
        made = {name: make() for name, make in given.items() if name in variant.inputs}
        return {**made, **variant.options}

    def _seconds(self, names: Iterable[str]) -> float:
        return sum(self.parts[name][1] for name in names)

    # -- shared parts ----------------------------------------------------------------------------
    def part(self, name: str, make: Callable[[], tuple[_Part, float]]) -> _Part:
        """Return the part `name`. The first call makes it; `make` also returns its seconds."""
        if name not in self.parts:
            progress(f"{name} ...")
            self.parts[name] = make()
        self.used.add(name)
        part: _Part = self.parts[name][0]
        return part

    def surrogate(self) -> Classifier:
        """Return a network trained on the full source. Only the training loop is timed."""

        def train() -> tuple[Classifier, float]:
            folder, epochs = self.runs.folder / "surrogate", self.runs.scale.surrogate_epochs
            with quiet():
                options = {"epochs": epochs, "seed": 1000, "record_dynamics": True}
                config = self.runs.pretraining(folder, **options)
                result = pretrain.pretrain(config)
            return load_checkpoint(result["checkpoint"]), result["pretrain_seconds"]

        return self.part("surrogate", train)

    def dynamics(self) -> Path:
        """Return the file of the surrogate's training dynamics."""
        self.surrogate()
        return self.runs.folder / "surrogate" / "dynamics.npz"

    def encoder(self) -> Classifier:
        scale = self.runs.scale
        train = partial(train_encoder, self.index, scale.arch, scale.resolution)
        return self.part("encoder", partial(timed, train))

    def features(self, encoder: str, dataset: str) -> Features:
        model = self.surrogate() if encoder == "surrogate" else self.encoder()
        extract = partial(self._extract, model, dataset, "train", encoder)
        return self.part(f"features {encoder} {dataset}", partial(timed, extract))

    def _extract(self, model: Any, dataset: str, split: str, name: str) -> Features:
        with quiet():
            return extract_features(
                model,
                self.runs.folder / "data" / f"{dataset}_{split}.beton",
                self.runs.folder / "features" / f"{name}_{dataset}",
                resolution=self.runs.scale.resolution,
                crop_ratio=1.0,
                logits=True,
                restart=True,
            )

    def clusters(self, encoder: str) -> Clusters:
        """Return as many pseudo-classes of the source as it has classes."""
        features = np.asarray(self.features(encoder, "source").features)
        return self.part(
            f"clusters {encoder}", partial(timed, partial(cluster, features, NUM_CLUSTERS))
        )

    def influences(self) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """Return which classes each run included `(R, C)`, and its outcomes `(R, n)` by target."""
        return self.part("influence runs", self._run_influences)

    def _run_influences(
        self,
    ) -> tuple[tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]], float]:
        scale, folder, rng = self.runs.scale, self.runs.folder, np.random.default_rng(0)
        count = self.index.num_classes
        included = np.zeros((scale.influence_runs, count), dtype=np.bool_)
        jobs = []
        for run, row in enumerate(included):
            classes = np.sort(rng.permutation(count)[: count // 2])
            row[classes] = True
            selection = Selection.of_classes(self.index, classes, num_classes=count)
            path = folder / "selections" / f"influence_{run}.npz"
            selection.save(path)
            seed = INFLUENCE_SEED + run
            jobs.append(Job(path, selection.digest(), seed, scale.targets))
        scale = replace(scale, epochs=scale.influence_epochs, modes=("linear_probe",))
        results = Runs(scale, folder).do_all(jobs, "influence runs")
        outcomes = {
            target: np.array([self._hits(result, target) for result in results])
            for target in scale.targets
        }
        # Only the pretraining loops count, on as many cores as there are processes.
        seconds = sum(result["pretrained"]["pretrain_seconds"] for result in results)
        return (included, outcomes), seconds / scale.processes

    def _hits(self, result: dict[str, Any], target: str) -> NDArray[np.bool_]:
        """Return whether a probe is right, for each validation image of the target."""
        checkpoint = result["tuned"][target]["linear_probe"]["checkpoint"]
        seen = self._extract(checkpoint, target, "val", "probe")
        hits: NDArray[np.bool_] = seen.predictions == seen.labels
        return hits


def timed(call: Callable[[], _Part]) -> tuple[_Part, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started
