"""The result of pruning: a selection, and the scores and votes behind it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beton import BetonIndex
from ..scoring import Scores
from ..selection import Selection

SELECTION = "selection.npz"


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A selection made by `prune`, with the scores and votes behind it."""

    folder: Path
    source: BetonIndex
    scores: tuple[Scores, ...]
    """Scores of the source's classes or samples: one for each target, if the method sees it."""
    ranked: Scores
    """The scores that selected: those of all targets combined."""
    selection: Selection
    served: NDArray[np.int64] | None
    """Target class whose images cast most of the votes for each source class `(C,)`, counted over
    all targets; -1 without votes. None: the scores are not votes of labelled images for classes."""
    target_names: tuple[str, ...]
    """Name of each of the classes in `served`."""
    compacted: Path | None
    """The smaller beton, if it was asked for."""

    def classes(self) -> list[dict[str, Any]]:
        """Return the kept classes, the best first: `class`, `votes` or `score`, and `for`.

        `votes` are those of all targets' images, and `for` is the target class that is served most.
        Empty if the scores are not of the source's classes.
        """
        if self.ranked.unit == "sample" or "clusters" in self.selection.provenance:
            return []
        names = self.source.class_names(self.selection.label_field)
        is_votes = self.scores[0].votes is not None
        shown = np.sum([each.scores for each in self.scores], axis=0)
        shown = shown if is_votes else self.ranked.scores
        kept = set(self.selection.classes.tolist())
        found = []
        for class_id in self.ranked.ranking().tolist():
            if class_id not in kept:
                continue
            name = names[class_id] if class_id < len(names) else class_id
            value = int(shown[class_id]) if is_votes else float(shown[class_id])
            entry = {"class": name, "votes" if is_votes else "score": value}
            if self.served is not None and self.served[class_id] >= 0:
                entry["for"] = self.target_names[self.served[class_id]]
            found.append(entry)
        return found

    def summary(self) -> dict[str, Any]:
        """Return the selection, what the votes say and the files, JSON-able."""
        selected = self.selection.summary(self.source)
        if by_score := self.classes():
            selected["classes"] = by_score
        votes = [scores.summary()["votes"] for scores in self.scores if scores.votes is not None]
        return {
            **selected,
            **({"votes": votes} if votes else {}),
            "selection": str(self.folder / SELECTION),
            **({} if self.compacted is None else {"beton": str(self.compacted)}),
        }
