"""The verb score, with one sub-verb for each method."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output

__all__ = ["Score"]


@dataclass(frozen=True, kw_only=True)
class LabelMapping:
    """Label mapping: votes of the surrogate's predictions on the target."""

    target: Path
    """Features of the target's training split (`dp4tl features`)."""
    out: Path
    """Scores file (.npz) to write."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Score and save."""
        from ..scoring import label_mapping
        from ..scoring.features import Features

        target = Features.load(self.target)
        if target.predictions is None:
            raise ValueError(
                "`target` must hold predictions; got features of an encoder without a classifier. "
                "Use feature mapping: `dp4tl score fm`."
            )
        scores = label_mapping(
            target.predictions,
            target.num_outputs,
            mass=target.mass,
            provenance={"target": dict(target.provenance)},
        )
        return _save(scores, self.out)


@dataclass(frozen=True, kw_only=True)
class FeatureMapping:
    """Feature mapping: votes for the nearest source class mean in the surrogate's features."""

    target: Path
    """Features of the target's training split (`dp4tl features`)."""
    source: Path
    """Features of the source, by the same surrogate."""
    out: Path
    """Scores file (.npz) to write."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Score and save."""
        from ..scoring import feature_mapping
        from ..scoring.features import Features, check_same_surrogate

        target, source = Features.load(self.target), Features.load(self.source)
        check_same_surrogate(target, source)
        num_classes = max(source.num_outputs or 0, int(source.labels.max()) + 1)
        scores = feature_mapping(
            target.features,
            source.class_means(num_classes),
            provenance={
                "target": dict(target.provenance),
                "source": dict(source.provenance),
                "source_fingerprint": source.provenance.get("beton_fingerprint"),
            },
        )
        return _save(scores, self.out)


@dataclass(frozen=True, kw_only=True)
class Random:
    """Random scores: what the methods are compared with."""

    beton: Path
    """Source whose classes or samples are scored."""
    out: Path
    """Scores file (.npz) to write."""
    seed: int = 0
    """The same seed gives the same scores."""
    samples: bool = False
    """Score samples instead of classes."""
    label_field: str = "label"
    """Integer field of the class ids."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Score and save."""
        from ..beton import BetonIndex
        from ..scoring import random_scores

        index = BetonIndex.open(self.beton)
        count = index.num_samples if self.samples else index.num_classes(self.label_field)
        scores = random_scores(
            count,
            seed=self.seed,
            unit="sample" if self.samples else "class",
            provenance={"source_fingerprint": index.fingerprint},
        )
        return _save(scores, self.out)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the source's classes by a method."""

    method: (
        Annotated[LabelMapping, tyro.conf.subcommand("lm")]
        | Annotated[FeatureMapping, tyro.conf.subcommand("fm")]
        | Annotated[Random, tyro.conf.subcommand("random")]
    )

    @property
    def output(self) -> Output:
        """The method's output options."""
        return self.method.output

    def run(self) -> dict[str, Any]:
        """Score and save."""
        return self.method.run()


def _save(scores: Any, out: Path) -> dict[str, Any]:
    scores.save(out)
    return {
        "out": str(out),
        "method": scores.method,
        "unit": scores.unit,
        "scored": len(scores),
        "above_zero": int((scores.scores > 0).sum()),
        "best": scores.ranking()[:20].tolist(),
    }
