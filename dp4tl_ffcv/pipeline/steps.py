"""The steps of pruning, and the files that they leave in a folder."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..compaction.compact import compact as compact_beton
from ..runs import RunFolder
from ..scoring import Scores, methods
from ..scoring.clustering.kmeans import cluster
from ..scoring.combine import Combine, combine_scores
from ..scoring.features.features import Features
from ..scoring.votes import votes_by_label
from ..selection import Selection, select
from .pruned import SELECTION, Pruned

_MADE = {"target", "source", "models", "beton", "clusters"}  # inputs of methods
_BETON = "train.beton"


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of `prune`, and the files that they leave."""

    folder: Path
    source: BetonIndex
    targets: Sequence[BetonIndex]
    method: methods.Method
    options: Mapping[str, Any]
    clusters: int | None
    images: Mapping[str, Any]
    """Settings of feature extraction and of methods that read images."""
    rule: Mapping[str, Any]
    """Arguments of `select`: the budget, `combine` and `weights`."""
    compact: bool

    def __post_init__(self) -> None:
        self._check_method()
        self._check_rule()
        if self.compact and (self.folder / _BETON).resolve() == self.source.path.resolve():
            raise ValueError("`out` would overwrite the source. Choose another folder.")

    def _check_method(self) -> None:
        name, flags = self.method.name, self.method.flags
        if missing := sorted({*self.method.required} - _MADE - self.options.keys()):
            raise ValueError(
                f"the method {name} needs {', '.join(missing)}. Pass them as `options`, or take "
                f"the steps alone: `dp4tl score {name.replace('_', '-')}`, `dp4tl select`."
            )
        known = flags.keys() - _MADE - self.images.keys()
        if unknown := sorted(self.options.keys() - known):
            raise ValueError(
                f"the method {name} has no option {', '.join(unknown)}; it has "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        if self.clusters is None and "clusters" in self.method.required:
            raise ValueError(f"the method {name} needs `clusters`, a number of them.")
        if self.clusters is not None and "clusters" not in flags:
            raise ValueError(f"the method {name} uses no `clusters`. Leave them out.")

    def _check_rule(self) -> None:
        name, weights = self.method.name, self.rule["weights"]
        if self.rule["keep"] == "auto" and self.method.votes is None:
            raise ValueError(
                f"keep `auto` decides by votes of the target's images, which the method {name} "
                "does not give. Give a fraction."
            )
        if weights and "target" not in self.method.flags:
            raise ValueError(f"the method {name} does not see the targets. Leave out `weights`.")
        if weights and len(weights) != len(self.targets):
            raise ValueError(
                f"`weights` must hold a number for each of the {len(self.targets)} targets; got "
                f"{list(weights)}."
            )

    @property
    def needs_surrogate(self) -> bool:
        """Whether the method reads outputs of a surrogate."""
        return bool({"target", "source", "models"} & self.method.flags.keys())

    @property
    def facts(self) -> dict[str, Any]:
        """Everything except the surrogate that the result depends on, as JSON values."""
        return {
            "source": self.source.fingerprint,
            "targets": [index.fingerprint for index in self.targets],
            "method": self.method.name,
            "options": {name: _as_json(value) for name, value in self.options.items()},
            "clusters": self.clusters,
            **self.images,
            **self.rule,
            "compact": self.compact,
        }

    def extract(self, extract: Callable[..., Any], *, overwrite: bool) -> None:
        """Extract the features that the method reads.

        Args:
            extract: takes a beton, the folder to write, and options of `extract_features`.
            overwrite: replace features of other settings.
        """
        logits = self.method.outputs == "logits"
        read = [*zip(self.targets, self._targets, strict=True)] if self._targets else []
        if "source" in self.method.flags:
            read.append((self.source, self._features("source")))
        for index, folder in read:
            try:
                extract(index, folder, logits=logits)
            except ValueError:  # other ranks than 0 do not know that it is StaleArtifactError
                if not overwrite:
                    raise
                extract(index, folder, logits=logits, restart=True)

    def delete_results(self) -> None:
        """Delete the files of an earlier call, except for features, which may be the same."""
        beton = self.folder / _BETON
        for path in (
            self.folder / SELECTION,
            self.folder / "clusters.npz",
            *self.folder.glob("scores*.npz"),
            *(beton.with_name(beton.name + end) for end in ("", ".json", ".jpegs")),
        ):
            path.unlink(missing_ok=True)

    def finish(self, run: RunFolder, surrogate: Any, *, num_workers: int | None) -> None:
        """Score, select and, if asked for, compact; then mark the run as finished."""
        if self.clusters is not None:
            cluster(self._features("source"), self.clusters, out=self._clusters)
        scores = []
        targets: Sequence[Path | None] = self._targets or [None]
        for target, out in zip(targets, self._scores, strict=True):
            inputs = self._inputs(target, surrogate)
            scores.append(methods.score(self.method.name, out=out, **inputs, **self.options))
        of_clusters = self.clusters is not None and scores[0].unit == "class"
        selection = select(
            scores,
            self.source,
            **self.rule,
            clusters=self._clusters if of_clusters else None,
            out=self.folder / SELECTION,
        )
        if self.compact:
            compact_beton(
                self.source.path, selection, self.folder / _BETON, num_workers=num_workers
            )
        run.finish({})

    @property
    def is_whole(self) -> bool:
        """Whether the scores and the selection are there."""
        return all(path.exists() for path in (*self._scores, self.folder / SELECTION))

    def result(self) -> Pruned:
        """Read the files of the finished run."""
        scores = tuple(map(Scores.load, self._scores))
        combine: Combine = self.rule["combine"]
        weights = self.rule["weights"]
        ranked = scores[0]
        if len(scores) > 1:
            ranked = combine_scores(scores, combine=combine, weights=weights)
        served, names = self._served(len(ranked))
        return Pruned(
            folder=self.folder,
            source=self.source,
            scores=scores,
            ranked=ranked,
            selection=Selection.load(self.folder / SELECTION),
            served=served,
            target_names=names,
            compacted=self.folder / _BETON if self.compact else None,
        )

    def _served(self, num_classes: int) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Return `Pruned.served` and its names: classes of all targets, in their order."""
        if self.method.votes is None:
            return None, ()
        matrices, names = [], list[str]()
        for index, folder in zip(self.targets, self._targets, strict=True):
            labels = Features.load(folder).labels
            votes = self.method.votes(**self._inputs(folder, None))
            matrix = votes_by_label(votes, labels, num_classes)
            matrices.append(matrix)
            known = index.class_names()
            names += [known[n] if n < len(known) else str(n) for n in range(len(matrix))]
        counts = np.concatenate(matrices)
        if not len(counts):
            return None, ()
        return np.where(counts.any(axis=0), counts.argmax(axis=0), -1), tuple(names)

    def _inputs(self, target: Path | None, surrogate: Any) -> dict[str, Any]:
        """Return the arguments of the method that are not options."""
        made = {
            "target": target,
            "source": self._features("source"),
            "models": [surrogate],
            "beton": self.source,
            "clusters": self._clusters if self.clusters is not None else None,
            **self.images,
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


def _as_json(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value
