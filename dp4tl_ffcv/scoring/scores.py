"""Scores: one number per source class or sample, and the ranking by these numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Artifact
from ..validate import check_choice
from .votes import Votes, expected_coverage

Unit = Literal["class", "sample"]

_OTHER_CLASSES = 0.02  # soft votes of outputs that stand for no class, and rounding

_NO_TIE_BREAK = np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores(Artifact):
    """A score per source class `(C,)` or per source sample `(N,)`; the highest is kept first."""

    KIND = "scores"
    ARRAYS: ClassVar = {"scores": (np.float64, 1), "tie_break": (np.float64, 1)}
    FACTS: ClassVar = {
        "method": str,
        "unit": str,
        "class_names": list[str],
        "own_votes": list[float],
        "label_information": float | None,
        "provenance": dict[str, Any],
    }
    OPTIONAL = ("class_names", "own_votes", "label_information")

    scores: NDArray[np.float64]
    tie_break: NDArray[np.float64] = field(default_factory=lambda: _NO_TIE_BREAK)
    """Decides between equal scores; same shape. Default: zeros."""
    method: str
    unit: Unit = "class"
    class_names: tuple[str, ...] = ()
    """Names of the classes of the surrogate whose outputs were scored; empty if unknown."""
    own_votes: tuple[float, ...] = ()
    """Scores by votes: each class's soft votes from images that voted for it; empty if unknown."""
    label_information: float | None = None
    """Scores by votes: see `Votes`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the scores came from: surrogate checkpoint, fingerprints, arguments."""

    def __post_init__(self) -> None:
        if self.tie_break is _NO_TIE_BREAK:
            object.__setattr__(self, "tie_break", np.zeros_like(self.scores, dtype=np.float64))
        for name in self.ARRAYS:
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise ValueError(
                    f"`{name}` must be a finite, non-empty vector; got shape {values.shape}. "
                    "Check what the scores were computed from."
                )
            self._freeze(**{name: values})
        if self.tie_break.shape != self.scores.shape:
            raise ValueError(
                f"`tie_break` must have the shape of `scores` {self.scores.shape}; got "
                f"{self.tie_break.shape}."
            )
        check_choice("unit", self.unit, ("class", "sample"))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.unit == "class" and self.class_names and len(self.class_names) != len(self):
            raise ValueError(
                f"`class_names` must name each of the {len(self)} classes; got "
                f"{len(self.class_names)} names."
            )

        own = np.array(self.own_votes, dtype=np.float64)
        if own.size and (own.shape != self.scores.shape or not (own >= 0).all()):
            raise ValueError(
                f"`own_votes` must hold a number of at least 0 for each of the {len(self)} classes."
            )
        object.__setattr__(self, "own_votes", tuple(self.own_votes))

    @classmethod
    def of_votes(
        cls, counts: NDArray[np.int64], soft_votes: NDArray[np.float64], **facts: Any
    ) -> "Scores":
        """Return scores by votes `(C,)`, with soft votes to break ties.

        Warns if the votes say little about the target. The warning names the caller of the caller.
        """
        made = cls(scores=counts.astype(np.float64), tie_break=soft_votes, **facts)
        if (votes := made.votes) is not None:
            votes.warn(stacklevel=3)
        return made

    @property
    def votes(self) -> Votes | None:
        """The votes, if scores and tie-break scores are votes and soft votes of the same images."""
        counts, soft = self.scores, self.tie_break
        total = counts.sum()
        if not (
            self.unit == "class"
            and total > 0
            and (counts >= 0).all()
            and (counts == np.floor(counts)).all()
            and (soft >= 0).all()
            and abs(soft.sum() - total) <= _OTHER_CLASSES * total
        ):
            return None
        own = np.array(self.own_votes) if self.own_votes else None
        return Votes(
            counts=counts,
            soft=soft,
            own=own,
            by_distance=self.method == "feature_mapping",
            label_information=self.label_information,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def ranking(self) -> NDArray[np.int64]:
        """Return the ids from best to worst: score descending, then tie-break descending, then id.

        No two ids tie, so every machine selects the same classes.
        """
        return np.lexsort((np.arange(len(self)), -self.tie_break, -self.scores)).astype(np.int64)

    def summary(self) -> dict[str, Any]:
        """Return the method, the unit, counts and the 20 best ids, as JSON-able values."""
        votes = self.votes
        return {
            "method": self.method,
            "unit": self.unit,
            "scored": len(self),
            "above_zero": int((self.scores > 0).sum()),
            "best": self.ranking()[:20].tolist(),
            **({} if votes is None else votes.summary(expected_coverage([self]))),
        }

    def __repr__(self) -> str:
        best = ", ".join(map(str, self.ranking()[:5]))
        return f"Scores({self.method}, {len(self)} x {self.unit}, best=[{best}, ...])"
