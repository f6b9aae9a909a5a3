"""Scores: one number per source class or sample, and the ranking by these numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Artifact
from ..validate import check_choice

Unit = Literal["class", "sample"]

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
        "provenance": dict[str, Any],
    }
    OPTIONAL = ("class_names",)

    scores: NDArray[np.float64]
    tie_break: NDArray[np.float64] = field(default_factory=lambda: _NO_TIE_BREAK)
    """Decides between equal scores; same shape. Default: zeros."""
    method: str
    unit: Unit = "class"
    class_names: tuple[str, ...] = ()
    """Names of the classes of the surrogate whose outputs were scored; empty if unknown."""
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

    def __len__(self) -> int:
        return len(self.scores)

    def ranking(self) -> NDArray[np.int64]:
        """Return the ids from best to worst: score descending, then tie-break descending, then id.

        No two ids tie, so every machine selects the same classes.
        """
        return np.lexsort((np.arange(len(self)), -self.tie_break, -self.scores)).astype(np.int64)

    def summary(self) -> dict[str, Any]:
        """Return the method, the unit, counts and the 20 best ids, as JSON-able values."""
        return {
            "method": self.method,
            "unit": self.unit,
            "scored": len(self),
            "above_zero": int((self.scores > 0).sum()),
            "best": self.ranking()[:20].tolist(),
        }

    def __repr__(self) -> str:
        best = ", ".join(map(str, self.ranking()[:5]))
        return f"Scores({self.method}, {len(self)} x {self.unit}, best=[{best}, ...])"
