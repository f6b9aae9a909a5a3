"""Scores of the planted benchmark: every method on the same surrogate, and what each costs."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

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
# Inputs that the benchmark can give. Methods that need others are left out.
OF_TARGET = {"target", "outcomes", "included"}
GIVEN = {*OF_TARGET, "source", "clusters", "beton", "seed", "models", "difficulty"}
# What is trained for scoring, in addition to features and clusters.
TRAINED = {"surrogate", "encoder", "influence runs"}


@dataclass(frozen=True)
class Variant:
    """A scoring method, with the options that make several runs of it."""

    method: methods.Method
    options: Mapping[str, Any]
    encoder: str = "surrogate"
    """Network whose features are used: `surrogate`, or `encoder`, which is trained without labels.
    """
    clusters: bool = False
    """Score pseudo-classes."""

    @property
    def inputs(self) -> set[str]:
        """Names of the method's inputs."""
        return {f.name for f in fields(self.method.inputs)}

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
    """Makes scores. Shared parts are made once, and their seconds are counted for each method."""

    training: Training
    folder: Path
    targets: tuple[str, ...]
    surrogate_epochs: int
    processes: int
    influence_runs: int = 40
    influence_epochs: int = 4
    made: dict[str, tuple[Any, float]] = field(default_factory=dict)

    @property
    def index(self) -> BetonIndex:
        """The source."""
        return BetonIndex.open(self.training.data / "source_train.beton")

    def of(self, name: str, target: str, seed: int) -> Scored:
        """Return the scores of a variant for a target, or for all targets."""
        variant = variants()[name]
        several = target == COMBINED and variant.sees_target
        parts: list[Scores] = []
        own, used, clusters = 0.0, set[str](), None
        for one in self.targets if several else (target,):
            inputs = self._inputs(variant, one, seed, used)
            started = time.perf_counter()
            parts.append(variant.method.function(**inputs))
            own += time.perf_counter() - started
            clusters = inputs.get("clusters")
        started = time.perf_counter()
        scores = parts[0]
        if several:
            # Negative scores have no sum to be divided by.
            negative = any((part.scores < 0).any() for part in parts)
            scores = combine_scores(parts, how="rank" if negative else "sum")
        own += time.perf_counter() - started
        return Scored(
            scores,
            own + self._seconds(used - TRAINED),
            self._seconds(used & TRAINED),
            clusters if scores.unit == "class" else None,
        )

    def _inputs(self, variant: Variant, target: str, seed: int, used: set[str]) -> dict[str, Any]:
        """Return the arguments of a variant; add the names of the shared parts to `used`."""
        suffix = "" if variant.encoder == "surrogate" else f" {variant.encoder}"

        def features(dataset: str) -> Features:
            used.update((f"features {dataset}{suffix}", variant.encoder))
            return self.features(dataset, variant.encoder)

        def clusters() -> Clusters:
            used.add(f"clusters{suffix}")
            return self.clusters(variant.encoder)

        def outcomes() -> NDArray[Any]:
            used.add("influence runs")
            return influences_of(self.influences()[1], target)

        def models() -> list[Classifier]:
            self.features("source")  # compiles
            used.add("surrogate")
            return [self.surrogate()]

        given: dict[str, Callable[[], Any]] = {
            "target": lambda: features(target),
            "source": lambda: features("source"),
            "outcomes": outcomes,
            "included": lambda: self.influences()[0],
            "models": models,
            "beton": lambda: self.index,
            "difficulty": lambda: score("el2n", source=features("source")),
            "seed": lambda: seed,
            "resolution": lambda: self.training.resolution,
            "crop_ratio": lambda: 1.0,
        }
        if variant.clusters or "clusters" in variant.method.required:
            given["clusters"] = clusters
        made = {name: make() for name, make in given.items() if name in variant.inputs}
        return {**made, **variant.options}

    def _seconds(self, names: Iterable[str]) -> float:
        return sum(self.made[name][1] for name in names)

    # -- shared parts ----------------------------------------------------------------------------
    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the part called `name`; the first call makes it and takes the time."""
        if name not in self.made:
            progress(f"{name} ...")
            started = time.perf_counter()
            value = make()
            self.made[name] = value, time.perf_counter() - started
        return self.made[name][0]

    def surrogate(self) -> Classifier:
        """Return a network trained on the full source; its seconds are those of the loop."""
        if "surrogate" not in self.made:
            with quiet():
                result = pretrain.pretrain(
                    self.training.pretraining(
                        self.folder / "surrogate",
                        epochs=self.surrogate_epochs,
                        seed=1000,
                        overwrite=True,
                    )
                )
            model = load_checkpoint(result["checkpoint"])
            self.made["surrogate"] = model, result["pretrain_seconds"]
        return self.made["surrogate"][0]  # type: ignore[no-any-return]  # of several kinds

    def encoder(self) -> Classifier:
        """Return a network trained without labels."""
        source, training = self.training.data / "source_train.beton", self.training
        return self.once(  # type: ignore[no-any-return]  # of several kinds
            "encoder",
            lambda: train_encoder(source, training.arch, training.resolution, Contrast()),
        )

    def beton(self, dataset: str) -> Path:
        """Return the training split of a dataset."""
        return self.training.data / f"{dataset}_train.beton"

    def features(self, dataset: str, encoder: str = "surrogate") -> Features:
        """Return a network's features and logits on a training split."""
        model = self.surrogate() if encoder == "surrogate" else self.encoder()
        suffix = "" if encoder == "surrogate" else f" {encoder}"

        def extract(name: str) -> Features:
            with quiet():
                return extract_features(
                    model,
                    self.beton(name),
                    self.folder / "features" / f"{encoder}_{name}",
                    resolution=self.training.resolution,
                    crop_ratio=1.0,
                    logits=True,
                    restart=True,
                )

        if not any(name.startswith("features") for name in self.made):
            extract(self.targets[0])  # what is compiled at first use is not counted
        return self.once(  # type: ignore[no-any-return]  # of several kinds
            f"features {dataset}{suffix}", lambda: extract(dataset)
        )

    def clusters(self, encoder: str) -> Clusters:
        """Return pseudo-classes of the source, as many as it has classes."""
        features = self.features("source", encoder).features
        suffix = "" if encoder == "surrogate" else f" {encoder}"
        return self.once(  # type: ignore[no-any-return]  # of several kinds
            f"clusters{suffix}", lambda: cluster(np.asarray(features), NUM_CLUSTERS)
        )

    def influences(self) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
        """Return which classes each run held `(R, C)`, and the runs' results."""
        if "influence runs" not in self.made:
            included, results = self._influences()
            # Only the pretraining loops count, on as many cores as there are processes.
            seconds = sum(result["pretrain_seconds"] for result in results) / self.processes
            self.made["influence runs"] = (included, results), float(seconds)
        return self.made["influence runs"][0]  # type: ignore[no-any-return]  # of several kinds

    def _influences(self) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
        index, rng = self.index, np.random.default_rng(0)
        count = index.num_classes
        included = np.zeros((self.influence_runs, count), dtype=np.bool_)
        jobs = []
        for run, held in enumerate(included):
            classes = np.sort(rng.permutation(count)[: count // 2])
            held[classes] = True
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
        return included, results


def votes_of(scores: Scores, renderings: list[str]) -> Mapping[str, float]:
    """Return the fraction of the votes that the classes of each rendering got."""
    votes = scores.scores.reshape(len(renderings), -1).sum(axis=1)
    return {name: float(v) for name, v in zip(renderings, votes / votes.sum(), strict=True)}
