"""Scores of the planted benchmark: every method on the same surrogate, and what each costs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.rows import progress
from benchmarks.planted.encoder import Contrast, train_encoder
from benchmarks.planted.runs import Job, Training, influence_run, influences_of, quiet, run_all
from dp4tl_ffcv import (
    BetonIndex,
    Features,
    Scores,
    Selection,
    class_means,
    extract_features,
    feature_mapping,
    label_mapping,
    load_checkpoint,
)
from dp4tl_ffcv.scoring import random_scores
from dp4tl_ffcv.scoring.clustering.kmeans import Clusters, cluster
from dp4tl_ffcv.scoring.combine import combine_scores
from dp4tl_ffcv.scoring.methods.grand import grand
from dp4tl_ffcv.scoring.methods.influence import class_influence
from dp4tl_ffcv.scoring.methods.label_mapping import soft_label_mapping
from dp4tl_ffcv.scoring.methods.samples import (
    coverage_centric,
    el2n,
    moderate,
    moderate_classes,
    prototype_distance,
)
from dp4tl_ffcv.utils import Classifier
from train import pretrain

OF_TARGET = ("lm", "soft_lm", "fm", "fm_clusters", "fm_label_free", "influence")
WITHOUT_TARGET = (
    "random_classes",
    "random_samples",
    "el2n",
    "grand",
    "moderate",
    "moderate_classes",
    "ccs",
    "prototypes",
)
COMBINED = "combined"
NUM_CLUSTERS = 80
INFLUENCE_SEED = 5000


@dataclass(frozen=True)
class Scored:
    """Scores of one method, for a target or for any."""

    scores: Scores
    seconds: float
    """Of features, scoring and, where there are any, clusters; without training a network."""
    training_seconds: float = 0.0
    """Of the surrogate, the encoder or the runs behind it."""
    clusters: Clusters | None = None


@dataclass
class Scorer:
    """Makes scores; what several need is made once and its seconds are counted for each."""

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

    def of(self, method: str, target: str, seed: int) -> Scored:
        """Return the scores of a method for a target, or for all of them."""
        if method in WITHOUT_TARGET:
            return self._without_target(method, seed)
        if target != COMBINED:
            return self._of_target(method, target)
        parts = [self._of_target(method, one) for one in self.targets]
        # Influences may be negative and have no sum to be divided by.
        how: Any = "rank" if method == "influence" else "sum"
        started = time.perf_counter()
        scores = combine_scores([part.scores for part in parts], how=how)
        spent = time.perf_counter() - started
        # What the targets share is counted once.
        suffix = " encoder" if method == "fm_label_free" else ""
        names = [f"features source{suffix}"] if method.startswith("fm") else []
        names += [f"clusters{suffix}"] if parts[0].clusters else []
        shared = sum(self.seconds(name) for name in names)
        own = sum(part.seconds - shared for part in parts)
        return replace(parts[0], scores=scores, seconds=own + shared + spent)

    # -- methods ---------------------------------------------------------------------------------
    def _of_target(self, method: str, target: str) -> Scored:
        if method == "influence":
            included, results = self.influences()
            outcomes = influences_of(results, target)
            started = time.perf_counter()
            scores = class_influence(outcomes, included)
            return Scored(scores, time.perf_counter() - started, self.influence_seconds(results))
        if method == "fm_label_free":
            return self._fm_clusters(target, "encoder")
        if method == "fm_clusters":
            return self._fm_clusters(target, "surrogate")
        features, spent = self.features(target), self.seconds(f"features {target}")
        started = time.perf_counter()
        if method == "fm":
            source = self.features("source")
            spent += self.seconds("features source")
            started = time.perf_counter()
            means = class_means(source.features, source.labels, self.index.num_classes)
            scores = feature_mapping(features.features, means)
        else:
            logits = np.asarray(features.logits)
            scores = label_mapping(logits) if method == "lm" else soft_label_mapping(logits)
        return Scored(scores, spent + time.perf_counter() - started, self.seconds("surrogate"))

    def _fm_clusters(self, target: str, encoder: str) -> Scored:
        clusters, features = self.clusters(encoder), self.features(target, encoder)
        source = self.features("source", encoder)
        started = time.perf_counter()
        means = class_means(source.features, clusters.labels, clusters.num_clusters)
        scores = feature_mapping(features.features, means)
        spent = time.perf_counter() - started
        suffix = "" if encoder == "surrogate" else f" {encoder}"
        spent += sum(
            self.seconds(f"{name}{suffix}")
            for name in ("clusters", "features source", f"features {target}")
        )
        return Scored(scores, spent, self.seconds(encoder), clusters)

    def _without_target(self, method: str, seed: int) -> Scored:
        if method.startswith("random"):
            unit: Any = "class" if method == "random_classes" else "sample"
            count = self.index.num_classes if unit == "class" else self.index.num_samples
            started = time.perf_counter()
            scores = random_scores(count, seed=seed, unit=unit)
            return Scored(scores, time.perf_counter() - started)
        if method == "grand":
            self.features("source")  # what is compiled at first use is not counted
            model, resolution = self.surrogate(), self.training.resolution
            scores = self.once(
                "grand",
                lambda: grand(model, self.beton("source"), resolution=resolution, crop_ratio=1.0),
            )
            return Scored(scores, self.seconds("grand"), self.seconds("surrogate"))
        source = self.features("source")
        logits, features, labels = np.asarray(source.logits), source.features, source.labels
        num_classes = self.index.num_classes
        methods: dict[str, Callable[[], Scores]] = {
            "el2n": lambda: el2n(logits, labels),
            "ccs": lambda: coverage_centric(el2n(logits, labels), seed=seed),
            "moderate": lambda: moderate(features, labels, num_classes),
            "moderate_classes": lambda: moderate_classes(features, labels, num_classes),
            "prototypes": lambda: prototype_distance(features, self.clusters("surrogate")),
        }
        extra = 0.0
        if method == "prototypes":
            self.clusters("surrogate")
            extra = self.seconds("clusters")
        started = time.perf_counter()
        scores = methods[method]()
        spent = time.perf_counter() - started + extra + self.seconds("features source")
        return Scored(scores, spent, self.seconds("surrogate"))

    # -- what they are made from -----------------------------------------------------------------
    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what is called `name`; make it, and take the time, if it is not there."""
        if name not in self.made:
            progress(f"{name} ...")
            started = time.perf_counter()
            value = make()
            self.made[name] = value, time.perf_counter() - started
        return self.made[name][0]

    def seconds(self, name: str) -> float:
        """Return how long it took to make."""
        return self.made[name][1]

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
        """Return which classes each run held `(R, C)`, and what came out."""
        return self.once("influence runs", self._influences)  # type: ignore[no-any-return]  # of several kinds

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

    def influence_seconds(self, results: list[dict[str, Any]]) -> float:
        """Return the seconds of the pretraining loops, on as many cores as there are processes."""
        return float(sum(result["pretrain_seconds"] for result in results)) / self.processes


def votes_of(scores: Scores, renderings: list[str]) -> Mapping[str, float]:
    """Return the share of the votes that the classes of each rendering got."""
    votes = scores.scores.reshape(len(renderings), -1).sum(axis=1)
    return {name: float(v) for name, v in zip(renderings, votes / votes.sum(), strict=True)}
