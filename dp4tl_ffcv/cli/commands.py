"""The verbs inspect, select and export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .output import Output

if TYPE_CHECKING:
    from ..scoring import Scores


# The library is imported inside `run`: `dp4tl --help` answers at once, without numba or torch.


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Say what a beton holds, without decoding a sample."""

    beton: Annotated[Path, tyro.conf.Positional]
    """The beton."""
    label_field: str = "label"
    """Integer field of the class ids."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Read the tables and describe them."""
        import numpy as np

        from ..beton import BetonIndex

        index = BetonIndex.open(self.beton)
        result: dict[str, Any] = {
            "beton": str(self.beton),
            "fingerprint": index.fingerprint,
            "samples": index.num_samples,
            "file_bytes": self.beton.stat().st_size,
            "sample_bytes": int(index.sample_bytes().sum()),
            "page_bytes": index.page_size,
            "fields": {part.name: part.kind for part in index.fields},
        }
        for part in index.fields:
            if part.kind == "rgb_image" and index.num_samples:
                images = index.metadata[part.column]
                result[f"{part.name}_stored"] = {
                    "jpg": int((images["mode"] == 0).sum()),
                    "raw": int((images["mode"] == 1).sum()),
                }
                for side in ("width", "height"):
                    result[f"{part.name}_{side}"] = [
                        int(images[side].min()),
                        int(images[side].max()),
                    ]
        if self.label_field != "label" or any(part.name == "label" for part in index.fields):
            counts = index.class_counts(self.label_field)
            result["classes"] = len(counts)
            result["classes_without_samples"] = int((counts == 0).sum())
            result["samples_per_class"] = {
                "min": int(counts.min()),
                "median": float(np.median(counts)),
                "max": int(counts.max()),
            }
        if index.manifest:
            result["class_names"] = list(index.manifest.class_names)
            result["written_by"] = index.manifest.written_by
        return result


@dataclass(frozen=True, kw_only=True)
class Select:
    """Retain the best classes, or samples, of a beton. Give exactly one of the four budgets."""

    scores: tuple[Path, ...]
    """Scores file; several, one for each target say, are combined."""
    beton: Path
    """Source that the selection is for."""
    out: Path
    """Selection file (.npz) to write."""
    keep: float | None = None
    """Share of the classes (or of the samples, for sample scores), in (0, 1]."""
    keep_classes: int | None = None
    """Number of classes."""
    keep_samples: int | None = None
    """Number of samples at most."""
    keep_bytes: str | None = None
    """Bytes that the retained samples may take, such as 20GiB."""
    combine: Literal["sum", "max", "rank", "round-robin"] = "sum"
    """How several scores become one: their shares of the votes, mean ranks, or turns."""
    weights: tuple[float, ...] = ()
    """One for each scores file; alike unless given."""
    within: Path | None = None
    """Sample scores that choose among the samples of each retained class."""
    keep_within: float | None = None
    """Share of the samples of each retained class that `--within` keeps, in (0, 1]."""
    balanced: bool = False
    """With sample scores, apply `--keep` to the samples of every class alike."""
    clusters: Path | None = None
    """Pseudo-classes (`dp4tl cluster`) that the scores are of, or that balance them."""
    label_field: str = "label"
    """Integer field of the class ids."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Select and save."""
        from ..beton import BetonIndex
        from ..scoring import Scores
        from ..scoring.clustering.clusters import Clusters
        from ..selection import select

        index = BetonIndex.open(self.beton)
        selection = select(
            self._combined([Scores.load(path) for path in self.scores]),
            index,
            keep=self.keep,
            keep_classes=self.keep_classes,
            keep_samples=self.keep_samples,
            keep_bytes=self.keep_bytes,
            within=None if self.within is None else Scores.load(self.within),
            keep_within=self.keep_within,
            balanced=self.balanced,
            clusters=None if self.clusters is None else Clusters.load(self.clusters),
            label_field=self.label_field,
        )
        selection.save(self.out)
        names = index.class_names(self.label_field)
        pseudo_classes = selection.provenance.get("clusters", {}).get("retained")
        return {
            "out": str(self.out),
            "retained_classes": len(selection.classes),
            "of_classes": len(selection.label_map),
            "retained_samples": len(selection.indices),
            "of_samples": index.num_samples,
            "retained_bytes": int(index.sample_bytes()[selection.indices].sum()),
            "classes": [names[c] if names else int(c) for c in selection.classes],
            **({} if pseudo_classes is None else {"pseudo_classes": pseudo_classes}),
        }

    def _combined(self, scores: "list[Scores]") -> "Scores":
        if len(scores) == 1 and not self.weights:
            return scores[0]
        from ..scoring.combine import combine_scores

        return combine_scores(scores, how=self.combine, weights=self.weights or None)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the retained sample ids for other loaders: .npy, .indices (DP4TL) or .txt."""

    selection: Annotated[Path, tyro.conf.Positional]
    """Selection file."""
    out: Path
    """File to write; its suffix chooses the format."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Export."""
        from ..selection import Selection, export_indices

        selection = Selection.load(self.selection)
        export_indices(selection, self.out)
        return {"out": str(self.out), "samples": len(selection.indices)}
