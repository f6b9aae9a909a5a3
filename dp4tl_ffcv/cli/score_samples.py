"""The methods of the verb score that score samples: what class scores are compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .scoring import Method, load_source, mean_over_runs, num_classes_of, of_source

if TYPE_CHECKING:
    from ..scoring import Scores


@dataclass(frozen=True, kw_only=True)
class ErrorNorm(Method):
    """EL2N: norm of the error of the softmax outputs, averaged over runs."""

    source: tuple[Path, ...]
    """Features of the source with logits (`dp4tl features --logits`), one for each run."""

    def score(self) -> "Scores":
        """Score each run, and average."""
        return mean_over_runs([self._of_run(path) for path in self.source])

    def _of_run(self, path: Path) -> "Scores":
        from ..scoring.methods.samples import el2n

        source = load_source(path)
        if source.logits is None:
            raise ValueError(
                f"`source` must hold logits; got features without in {str(path)!r}. Extract them "
                "with `dp4tl features --logits`."
            )
        return el2n(source.logits, source.labels, provenance=of_source(source))


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Method):
    """GraNd: norm of each sample's own gradient, averaged over runs."""

    beton: Path
    """Source, with fields image and label."""
    checkpoint: tuple[Path, ...]
    """Models trained on it, early in their training; one for each run."""
    arch: str | None = None
    """Architecture, of torchvision or timm:NAME: to insist on, or what another program's needs."""
    mean: tuple[float, float, float] | None = None
    """Of the channels, for pixels in [0, 1], where another program's model has its own."""
    std: tuple[float, float, float] | None = None
    """Likewise."""
    resolution: int = 224
    """Side of the centre crop in pixels, after resizing."""
    crop_ratio: float = 224 / 256
    """Side of the centre crop / shorter side of the image."""
    batch_size: int = 256
    """Images that are loaded at a time; does not change the result."""
    num_workers: int | None = None
    """Loading threads. Without it, all cores are used."""
    method: Literal["auto", "ghost", "vmap", "loop"] = "auto"
    """How the norms are computed; all give the same, auto the fastest that suits the model."""

    def score(self) -> "Scores":
        """Score by all runs."""
        from ..scoring.methods.grand import grand

        return grand(
            self.checkpoint,
            self.beton,
            arch=self.arch,
            mean=self.mean,
            std=self.std,
            resolution=self.resolution,
            crop_ratio=self.crop_ratio,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            method=self.method,
        )


@dataclass(frozen=True, kw_only=True)
class Moderate(Method):
    """Moderate: the samples, or classes, whose distance to the centre is nearest the median.

    `dp4tl select --balanced` then keeps the same share of each class, as DP4TL does.
    """

    source: Path
    """Features of the source (`dp4tl features`)."""
    classes: bool = False
    """Score classes instead of samples."""
    median: Literal["class", "all"] = "class"
    """Of the samples: the median distance of each class, or that of all."""

    def score(self) -> "Scores":
        """Measure the distances."""
        from ..scoring.methods.samples import moderate, moderate_classes

        source = load_source(self.source)
        given = source.features, source.labels, num_classes_of(source)
        if not self.classes:
            return moderate(*given, median=self.median, provenance=of_source(source))
        if self.median != "class":
            raise ValueError(
                f"`median` must be left out with `classes`; got {self.median!r}. There is one "
                "median of classes."
            )
        return moderate_classes(*given, provenance=of_source(source))


@dataclass(frozen=True, kw_only=True)
class CoverageCentric(Method):
    """CCS: samples of every difficulty alike, but for the hardest."""

    difficulty: Path
    """Sample scores that grow with difficulty, such as those of el2n or grand."""
    strata: int = 50
    """Ranges of difficulty, of equal width, that share the budget."""
    cutoff: float = 0.0
    """Share of the samples, the hardest, that comes last."""
    seed: int = 0
    """Of the order within each range."""

    def score(self) -> "Scores":
        """Take turns among the ranges."""
        from ..scoring import Scores
        from ..scoring.methods.samples import coverage_centric

        return coverage_centric(
            Scores.load(self.difficulty), strata=self.strata, cutoff=self.cutoff, seed=self.seed
        )


@dataclass(frozen=True, kw_only=True)
class PrototypeDistance(Method):
    """Prototypes: distance of each sample to the nearest centre of a cluster."""

    source: Path
    """Features of the source (`dp4tl features`)."""
    clusters: Path
    """Clusters of these features (`dp4tl cluster`)."""
    prefer: Literal["far", "near"] = "far"
    """Which samples are kept first."""

    def score(self) -> "Scores":
        """Measure the distances."""
        from ..scoring.clustering.clusters import Clusters
        from ..scoring.methods.samples import prototype_distance

        source, clusters = load_source(self.source), Clusters.load(self.clusters)
        return prototype_distance(
            source.features, clusters, prefer=self.prefer, provenance=of_source(source)
        )
