"""What the methods of the verb score have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import Output

if TYPE_CHECKING:
    from ..scoring import Scores
    from ..scoring.features.features import Features


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method that scores; each adds its inputs and `score`."""

    out: Path
    """Scores file (.npz) to write."""
    output: Output = field(default_factory=Output)

    def score(self) -> "Scores":
        """Read the inputs and score."""
        raise NotImplementedError

    def run(self) -> dict[str, Any]:
        """Score and save."""
        scores = self.score()
        scores.save(self.out)
        return {
            "out": str(self.out),
            "method": scores.method,
            "unit": scores.unit,
            "scored": len(scores),
            "above_zero": int((scores.scores > 0).sum()),
            "best": scores.ranking()[:20].tolist(),
        }


def load_source(path: Path) -> "Features":
    """Load features of all samples of a source, with row i that of sample id i.

    Raises:
        ValueError: an id is missing or repeated.
    """
    import numpy as np

    from ..scoring.features.features import Features

    source = Features.load(path)
    everything = np.arange(len(source))
    if np.array_equal(source.indices, everything):
        return source
    order = np.argsort(source.indices, kind="stable")
    if not np.array_equal(source.indices[order], everything):
        raise ValueError(
            f"`source` must hold each sample id from 0 to {len(source) - 1} once; got "
            f"{len(np.unique(source.indices))} different ids up to {source.indices.max()} in "
            f"{str(path)!r}. Extract the features of the whole source."
        )
    names = ("features", "labels", "indices", "logits", "predictions")
    given = {name: getattr(source, name) for name in names}
    rows = {name: values[order] for name, values in given.items() if values is not None}
    return replace(source, **rows)


def num_classes_of(source: "Features") -> int:
    """Return the source's number of classes: those of its beton, or those its labels know of.

    The surrogate's outputs say nothing of it: one of ImageNet serves sources of other classes.
    """
    recorded = source.provenance.get("beton_classes")
    return max(int(recorded or 0), int(source.labels.max()) + 1)


def of_source(source: "Features") -> dict[str, Any]:
    """Return the provenance of scores that come from a source's features."""
    about = dict(source.provenance)
    return {"source": about, "source_fingerprint": about.get("beton_fingerprint")}


def mean_over_runs(runs: Sequence["Scores"]) -> "Scores":
    """Average the scores of several runs over one source.

    Raises:
        StaleArtifactError: the runs are of different betons.
        ValueError: there are none, or their scores do not go together.
    """
    from ..scoring.combine import mean_scores

    return runs[0] if len(runs) == 1 else mean_scores(runs)
