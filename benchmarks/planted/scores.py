"""Scores of the planted benchmark: every method on the same surrogate, with its cost."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.rows import progress
from benchmarks.planted.encoder import Contrast, train_encoder
from benchmarks.planted.runs import Job, Training, influence_run, influences_of, quiet, run_all
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
from dp4tl_ffcv.scoring import methods, score
from dp4tl_ffcv.utils import Classifier
from train import pretrain

COMBINED = "combined"
NUM_CLUSTERS = 80
INFLUENCE_SEED = 5000
# Inputs that the benchmark can provide. Methods that require others are left out.
OF_TARGET = {"target", "outcomes", "included"}
GIVEN = {*OF_TARGET, "source", "clusters", "beton", "seed", "models", "difficulty"}
# Parts that are trained. Features and clusters are not.
TRAINED = {"surrogate", "encoder", "influence runs"}

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Variant:
    """A scoring method with fixed options."""

    method: methods.Method
    options: Mapping[str, Any]
    encoder: str = "surrogate"
    """Network of the features: `surrogate`, or `encoder`, which is trained without labels."""
    clusters: bool = False
    """Score pseudo-classes."""

    @property
    def inputs(self) -> set[str]:
        """Names of the method's inputs."""
        return set(self.method.flags)

    @property
    def sees_target(self) -> bool:
        """Whether the scores depend on the target."""
        return bool(self.inputs & OF_TARGET)


def variants() -> dict[str, Variant]:
    """Return every variant of every method, by name."""
    found: dict[str, Variant] = {}
    for method in map(methods.get, methods.names()):
        if not set(method.required) <= GIVEN:
            continue
        for unit in method.units:
            several = len(method.units) > 1
            name = f"{method.name}_{unit}" if several else method.name
            found[name] = variant = Variant(method, {"unit": unit} if several else {})
            if "clusters" in variant.inputs - set(method.required):
                found[f"{name}_clusters"] = replace(variant, clusters=True)
                found[f"{name}_label_free"] = replace(variant, clusters=True, encoder="encoder")
    return found


@dataclass(frozen=True)
class Scored:
    """Scores of one variant, for one target or for all."""

    scores: Scores
    seconds: float
    """Seconds of features, clusters and scoring, without training a network."""
    training_seconds: float
    """Seconds of training the surrogate, the encoder or the influence runs."""
    clusters: Clusters | None = None
    """Pseudo-classes that were scored."""


@dataclass
class Scorer:
    """Scores of every variant. The parts that variants share are made once."""

    training: Training
    folder: Path
    targets: tuple[str, ...]
    surrogate_epochs: int
    processes: int
    influence_runs: int = 40
    influence_epochs: int = 4
    parts: dict[str, tuple[Any, float]] = field(default_factory=dict)
    """Shared parts, and the seconds that each took, by name."""
    used: set[str] = field(default_factory=set)
    """Names of the parts that the current variant has used."""

    @property
    def index(self) -> BetonIndex:
        """The source."""
        return BetonIndex.open(self.training.data / "source_train.beton")

    def score(self, name: str, target: str, seed: int) -> Scored:
        """Return the scores of a variant for a target, or for all targets."""
        variant = variants()[name]
        if not self.parts:
            self._extract("surrogate", self.targets[0])  # compiles, which counts for no variant
        self.used.clear()
        several = target == COMBINED and variant.sees_target
        found: list[Scores] = []
        seconds, inputs = 0.0, dict[str, Any]()
        for one in self.targets if several else (target,):
            inputs = self._inputs(variant, one, seed)
            scores, spent = timed(partial(variant.method.function, **inputs))
            found.append(scores)
            seconds += spent
        if several:
            # Negative scores have no sum to be divided by.
            how: Any = "rank" if any((each.scores < 0).any() for each in found) else "sum"
            scores, spent = timed(partial(combine_scores, found, how=how))
            seconds += spent
        return Scored(
            scores,
            seconds + self._seconds(self.used - TRAINED),
            self._seconds(self.used & TRAINED),
            inputs.get("clusters") if scores.unit == "class" else None,
        )

    def _inputs(self, variant: Variant, target: str, seed: int) -> dict[str, Any]:
        """Return the arguments of a variant's function."""
        given: dict[str, Callable[[], Any]] = {
            "target": lambda: self.features(variant.encoder, target),
            "source": lambda: self.features(variant.encoder, "source"),
            "outcomes": lambda: influences_of(self.influences()[1], target),
            "included": lambda: self.influences()[0],
            "models": lambda: [self.surrogate()],
            "beton": lambda: self.index,
            "difficulty": lambda: score("el2n", source=self.features("surrogate", "source")),
            "seed": lambda: seed,
            "resolution": lambda: self.training.resolution,
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
        """Return a network trained on the full source. Its seconds are those of the loop."""

        def train() -> tuple[Classifier, float]:
            config = self.training.pretraining(
                self.folder / "surrogate",
                epochs=self.surrogate_epochs,
                seed=1000,
                overwrite=True,
            )
            with quiet():
                result = pretrain.pretrain(config)
            return load_checkpoint(result["checkpoint"]), result["pretrain_seconds"]

        return self.part("surrogate", train)

    def encoder(self) -> Classifier:
        """Return a network trained without labels."""
        training = self.training
        source = training.data / "source_train.beton"
        train = partial(train_encoder, source, training.arch, training.resolution, Contrast())
        return self.part("encoder", partial(timed, train))

    def features(self, encoder: str, dataset: str) -> Features:
        """Return a network's features and logits of a training split."""
        _ = self.surrogate() if encoder == "surrogate" else self.encoder()
        extract = partial(self._extract, encoder, dataset)
        return self.part(f"features {encoder} {dataset}", partial(timed, extract))

    def _extract(self, encoder: str, dataset: str) -> Features:
        with quiet():
            return extract_features(
                self.surrogate() if encoder == "surrogate" else self.encoder(),
                self.training.data / f"{dataset}_train.beton",
                self.folder / "features" / f"{encoder}_{dataset}",
                resolution=self.training.resolution,
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

    def influences(self) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
        """Return which classes each run included `(R, C)`, and the runs' results."""
        return self.part("influence runs", self._run_influences)

    def _run_influences(self) -> tuple[tuple[NDArray[np.bool_], list[dict[str, Any]]], float]:
        index, rng = self.index, np.random.default_rng(0)
        count = index.num_classes
        included = np.zeros((self.influence_runs, count), dtype=np.bool_)
        jobs = []
        for run, row in enumerate(included):
            classes = np.sort(rng.permutation(count)[: count // 2])
            row[classes] = True
            selection = Selection.of_classes(index, classes, num_classes=count)
            path = self.folder / "selections" / f"influence_{run}.npz"
            selection.save(path)
            jobs.append(
                Job(
                    selection=path,
                    digest=selection.digest(),
                    seed=INFLUENCE_SEED + run,
                    targets=self.targets,
                    images=len(selection),
                )
            )
        training = replace(self.training, epochs=self.influence_epochs)
        results = run_all(
            influence_run, training, jobs, self.folder / "influence", self.processes, "influence"
        )
        # Only the pretraining loops count, on as many cores as there are processes.
        seconds = sum(result["pretrain_seconds"] for result in results) / self.processes
        return (included, results), float(seconds)


def timed(call: Callable[[], _Part]) -> tuple[_Part, float]:
    """Return the result of a call, and its seconds."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def votes_of(scores: Scores, renderings: list[str]) -> Mapping[str, float]:
    """Return the fraction of the votes that the classes of each rendering got."""
    votes = scores.scores.reshape(len(renderings), -1).sum(axis=1)
    return {name: float(v) for name, v in zip(renderings, votes / votes.sum(), strict=True)}
