"""The verb score: a sub-verb for each method, and the methods that score classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .output import Output
from .score_samples import CoverageCentric, ErrorNorm, GradientNorm, Moderate, PrototypeDistance
from .scoring import Method, num_classes_of, of_source

if TYPE_CHECKING:
    from ..scoring import Scores
    from ..scoring.features.features import Features


@dataclass(frozen=True, kw_only=True)
class LabelMapping(Method):
    """Label mapping: votes of the surrogate's predictions on the target.

    The scores are of the classes that the surrogate was trained on: select from a source of those
    classes. Which file it was trained on is kept with the scores as `trained_on`, but another of
    the same source, of other resolution say, is as good, so that none is refused.
    """

    target: Path
    """Features of the target's training split (`dp4tl features`)."""

    def score(self) -> "Scores":
        """Count the predictions."""
        from ..scoring import label_mapping
        from ..scoring.features.features import Features

        target = Features.load(self.target)
        provenance = {"target": dict(target.provenance)}
        if target.predictions is not None and target.mass is not None:
            return label_mapping(target.predictions, mass=target.mass, provenance=provenance)
        return label_mapping(_logits(target, self.target), provenance=provenance)


@dataclass(frozen=True, kw_only=True)
class SoftLabelMapping(Method):
    """Soft label mapping: the surrogate's softmax outputs, summed over the target.

    Of the classes that the surrogate was trained on, as in label mapping.
    """

    target: Path
    """Features of the target's training split (`dp4tl features`)."""

    def score(self) -> "Scores":
        """Add the outputs up."""
        from ..scoring.features.features import Features
        from ..scoring.methods.label_mapping import soft_label_mapping

        target = Features.load(self.target)
        values = _logits(target, self.target) if target.mass is None else target.mass
        return soft_label_mapping(values, provenance={"target": dict(target.provenance)})


@dataclass(frozen=True, kw_only=True)
class FeatureMapping(Method):
    """Feature mapping: votes for the nearest source class mean in the surrogate's features."""

    target: Path
    """Features of the target's training split (`dp4tl features`)."""
    source: Path
    """Features of the source, by the same surrogate."""
    clusters: Path | None = None
    """Pseudo-classes (`dp4tl cluster`) to score in place of the source's classes."""

    def score(self) -> "Scores":
        """Take the means and count the votes."""
        from ..scoring import feature_mapping
        from ..scoring.features.features import Features, check_same_surrogate

        target, source = Features.load(self.target), Features.load(self.source)
        check_same_surrogate(target, source)
        provenance = {"target": dict(target.provenance), **of_source(source)}
        if self.clusters is None:
            means = source.class_means(num_classes_of(source))
        else:
            means, provenance["clusters_sha256"] = _means_of_clusters(source, self.clusters)
        return feature_mapping(target.features, means, provenance=provenance)


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Random scores: what the methods are compared with."""

    beton: Path
    """Source whose classes or samples are scored."""
    seed: int = 0
    """The same seed gives the same scores."""
    samples: bool = False
    """Score samples instead of classes."""
    label_field: str = "label"
    """Integer field of the class ids."""

    def score(self) -> "Scores":
        """Draw a score for each."""
        from ..beton import BetonIndex
        from ..scoring import random_scores

        index = BetonIndex.open(self.beton)
        return random_scores(
            len(index) if self.samples else len(index.class_counts(self.label_field)),
            seed=self.seed,
            unit="sample" if self.samples else "class",
            provenance={"source_fingerprint": index.fingerprint},
        )


@dataclass(frozen=True, kw_only=True)
class Influence(Method):
    """Class influence: how much better targets do with a source class than without it."""

    outcomes: Path
    """.npy of (runs, target samples): what each run made of each, such as 1 where it was right."""
    included: Path
    """.npy of (runs, source classes): whether a run was pretrained on a class."""

    def score(self) -> "Scores":
        """Compare the runs."""
        from ..artifacts import sha256_of_file
        from ..scoring.methods.influence import class_influence

        outcomes = _load_array("outcomes", self.outcomes)
        included = _load_array("included", self.included)
        if included.dtype != bool and not ((included == 0) | (included == 1)).all():
            raise ValueError(
                f"`included` must hold true and false, or 1 and 0; got {included.dtype} with other "
                f"values in {str(self.included)!r}. Say of each run which classes it had."
            )
        provenance = {
            "outcomes_sha256": sha256_of_file(self.outcomes),
            "included_sha256": sha256_of_file(self.included),
        }
        return class_influence(outcomes, included.astype(bool), provenance=provenance)


@dataclass(frozen=True, kw_only=True)
class Classes(Method):
    """A list of classes, best first: such as those that Jain et al. publish.

    Theirs are in the order of the ids, which ranks nothing: keep as many classes as they do.
    """

    class_list: Annotated[Path, tyro.conf.arg(name="list")]
    """Class ids: .npy, or text."""
    beton: Path
    """Source that they are classes of."""
    column: str | None = None
    """Of a table, such as CSV: the column of the ids, by its name or by its number from 0 on."""
    exclude: bool = False
    """The list holds what is to go, worst first, rather than what is to stay."""
    label_field: str = "label"
    """Integer field of the class ids."""

    def score(self) -> "Scores":
        """Read the list."""
        from ..artifacts import sha256_of_file
        from ..beton import BetonIndex
        from ..scoring.methods.influence import class_list_scores, read_class_list

        index = BetonIndex.open(self.beton)
        num_classes = len(index.class_counts(self.label_field))
        numbered = self.column is not None and self.column.isdecimal()
        column = int(self.column or 0) if numbered else self.column
        ids = read_class_list(self.class_list, num_classes, column=column)
        provenance = {
            "list_sha256": sha256_of_file(self.class_list),
            "source_fingerprint": index.fingerprint,
        }
        return class_list_scores(ids, num_classes, exclude=self.exclude, provenance=provenance)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score the source's classes, or its samples, by a method."""

    method: (
        Annotated[LabelMapping, tyro.conf.subcommand("lm")]
        | Annotated[SoftLabelMapping, tyro.conf.subcommand("soft-lm")]
        | Annotated[FeatureMapping, tyro.conf.subcommand("fm")]
        | Annotated[Random, tyro.conf.subcommand("random")]
        | Annotated[ErrorNorm, tyro.conf.subcommand("el2n")]
        | Annotated[GradientNorm, tyro.conf.subcommand("grand")]
        | Annotated[Moderate, tyro.conf.subcommand("moderate")]
        | Annotated[CoverageCentric, tyro.conf.subcommand("ccs")]
        | Annotated[PrototypeDistance, tyro.conf.subcommand("prototypes")]
        | Annotated[Influence, tyro.conf.subcommand("influence")]
        | Annotated[Classes, tyro.conf.subcommand("classes")]
    )

    @property
    def output(self) -> Output:
        """The method's output options."""
        return self.method.output

    def run(self) -> dict[str, Any]:
        """Score and save."""
        return self.method.run()


def _logits(target: "Features", path: Path) -> Any:
    if target.logits is None:
        raise ValueError(
            f"`target` must hold what the surrogate predicts; got features alone in {str(path)!r}. "
            "Extract them with a classifier, or score by fm."
        )
    return target.logits


def _means_of_clusters(source: "Features", path: Path) -> tuple[Any, str]:
    """Return the means of pseudo-classes, and the pseudo-classes' digest."""
    from ..scoring import class_means
    from ..scoring.checks import one_source
    from ..scoring.clustering.clusters import Clusters

    clusters = Clusters.load(path)
    one_source("clusters", (clusters.provenance, of_source(source)))
    if source.indices.max() >= len(clusters):
        raise ValueError(
            f"`clusters` must hold a pseudo-class for every sample of the source; got "
            f"{len(clusters)} for ids up to {source.indices.max()}. Cluster this source's features."
        )
    labels = clusters.labels[source.indices]
    return class_means(source.features, labels, clusters.num_clusters), clusters.digest()


def _load_array(name: str, path: Path) -> Any:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _no_array(name, path) from error
    if not isinstance(array, np.ndarray):
        raise _no_array(name, path)
    return array


def _no_array(name: str, path: Path) -> ValueError:
    return ValueError(
        f"`{name}` must be an array of numbers in a .npy file; got {str(path)!r}. "
        "Write it with numpy.save."
    )
