"""The steps of pruning, and the files that they leave in a folder."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..compaction.compact import compact as compact_beton
from ..runs import RunFolder, checkpoint_of
from ..scoring import Scores, methods
from ..scoring.clustering.kmeans import cluster
from ..scoring.combine import Combine
from ..scoring.features.features import Features
from ..scoring.surrogate.checkpoints import ModelLike
from ..scoring.surrogate.models import Classifier
from ..scoring.votes import votes_by_label
from ..selection import Selection, select
from ..stored import read_json, sha256_of_file
from .pruned import SELECTION, Pruned

_MADE = {"target", "source", "models", "beton", "clusters"}  # inputs of methods


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of `prune`, and the files that they leave."""

    folder: Path
    source: BetonIndex
    targets: Sequence[BetonIndex]
    surrogate: ModelLike
    method: methods.Method
    options: Mapping[str, Any]
    clusters: int | None

    def __post_init__(self) -> None:
        known = self.method.flags.keys() - _MADE
        name = self.method.name
        if missing := sorted({*self.method.required} - _MADE - self.options.keys()):
            raise ValueError(
                f"the method {name} needs {', '.join(missing)}. Pass them as `options`, or take "
                f"the steps alone: `dp4tl score {name.replace('_', '-')}`, `dp4tl select`."
            )
        if unknown := sorted(self.options.keys() - known):
            raise ValueError(
                f"the method {name} has no option {', '.join(unknown)}; it has "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        if self.clusters is None and "clusters" in self.method.required:
            raise ValueError(f"the method {name} needs `clusters`, a number of them.")
        if self.clusters is not None and "clusters" not in self.method.flags:
            raise ValueError(f"the method {name} uses no `clusters`. Leave them out.")

    @property
    def facts(self) -> dict[str, Any]:
        """What the scores depend on, as JSON values."""
        return {
            "source": self.source.fingerprint,
            "targets": [index.fingerprint for index in self.targets],
            "surrogate": _described(self.surrogate),
            "outputs": self.method.outputs,
            "method": self.method.name,
            "options": {name: _as_json(value) for name, value in self.options.items()},
            "clusters": self.clusters,
        }

    def other_features(self, run: RunFolder, images: Iterable[str]) -> bool:
        """Return whether the folder holds features that this run cannot use.

        Args:
            run: the run that is about to start.
            images: names of the settings of feature extraction.
        """
        try:
            before = read_json(run.path / "config.json")
        except (FileNotFoundError, ValueError):
            return False
        names = ("source", "targets", "surrogate", "outputs", *images)
        is_loaded = isinstance(self.surrogate, Classifier)  # only its name is recorded
        return is_loaded or any(before.get(name) != run.config[name] for name in names)

    @property
    def combine(self) -> Combine:
        """How scores for several targets are combined: only votes surely have a sum."""
        return "sum" if self.method.votes else "rank"

    def extract(self, extract: Callable[..., Any]) -> None:
        """Extract the features that the method reads."""
        outputs = {"logits": self.method.outputs == "logits"}
        if self._targets:
            for index, folder in zip(self.targets, self._targets, strict=True):
                extract(index, folder, **outputs)
        if "source" in self.method.flags:
            extract(self.source, self._features("source"), **outputs)

    def finish(
        self, run: RunFolder, rule: Mapping[str, Any], *, compact: bool, num_workers: int | None
    ) -> None:
        """Score, select and, if asked for, compact; then mark the run as finished."""
        if self.clusters is not None:
            cluster(self._features("source"), self.clusters, out=self._clusters)
        targets: Sequence[Path | None] = self._targets or [None]
        scores = [self._score(*pair) for pair in zip(targets, self._scores, strict=True)]
        of_clusters = self.clusters is not None and scores[0].unit == "class"
        selection = select(
            scores,
            self.source,
            **rule,
            clusters=self._clusters if of_clusters else None,
            out=self.folder / SELECTION,
        )
        if compact:
            compact_beton(self.source.path, selection, self._compacted, num_workers=num_workers)
        run.finish({"compacted": compact})

    def result(self, *, compact: bool) -> Pruned:
        """Read the files of the finished run."""
        scores = tuple(map(Scores.load, self._scores))
        served, names = self._served(len(scores[0]))
        return Pruned(
            folder=self.folder,
            source=self.source,
            scores=scores,
            selection=Selection.load(self.folder / SELECTION),
            served=served,
            target_names=names,
            compacted=self._compacted if compact else None,
        )

    def _served(self, num_classes: int) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Return `Pruned.served` and its names: classes of all targets, in their order."""
        if self.method.votes is None:
            return None, ()
        matrices, names = [], list[str]()
        for index, folder in zip(self.targets, self._targets, strict=True):
            labels = Features.load(folder).labels
            votes = self.method.votes(**self._inputs(folder))
            matrix = votes_by_label(votes, labels, num_classes)
            matrices.append(matrix)
            known = index.class_names()
            names += [known[n] if n < len(known) else str(n) for n in range(len(matrix))]
        counts = np.concatenate(matrices)
        if not len(counts):
            return None, ()
        return np.where(counts.any(axis=0), counts.argmax(axis=0), -1), tuple(names)

    def _score(self, target: Path | None, out: Path) -> Scores:
        return methods.score(self.method.name, out=out, **self._inputs(target), **self.options)

    def _inputs(self, target: Path | None) -> dict[str, Any]:
        """Return the arguments of the method that are made here."""
        made = {
            "target": target,
            "source": self._features("source"),
            "models": [self.surrogate],
            "beton": self.source,
            "clusters": self._clusters if self.clusters is not None else None,
        }
        return {name: made[name] for name in self.method.flags & made.keys()}

    @property
    def _targets(self) -> list[Path]:
        """Folders of the targets' features; none if the method sees no target."""
        if "target" not in self.method.flags:
            return []
        return [self._features(f"target{suffix}") for suffix in self._suffixes]

    @property
    def _scores(self) -> list[Path]:
        suffixes = self._suffixes if self._targets else [""]
        return [self.folder / f"scores{suffix}.npz" for suffix in suffixes]

    @property
    def _suffixes(self) -> list[str]:
        count = len(self.targets)
        return [""] if count == 1 else [f"_{number}" for number in range(count)]

    def _features(self, name: str) -> Path:
        return self.folder / "features" / name

    @property
    def _clusters(self) -> Path:
        return self.folder / "clusters.npz"

    @property
    def _compacted(self) -> Path:
        return self.folder / "train.beton"


def _as_json(value: Any) -> Any:
    return str(value) if isinstance(value, os.PathLike) else value


def _described(surrogate: ModelLike) -> str:
    """Return the name of a model, or the hash of a checkpoint."""
    if isinstance(surrogate, Classifier):
        return surrogate.arch
    return sha256_of_file(checkpoint_of(surrogate)) if Path(surrogate).exists() else str(surrogate)
