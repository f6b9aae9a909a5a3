"""Scores: one number per source class or sample, and the ranking by these numbers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import load_artifact, save_artifact
from ..validate import check_choice

Unit = Literal["class", "sample"]

_KIND = "scores"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """A score per source class `(C,)` or per source sample `(N,)`; the highest is kept first."""

    scores: NDArray[np.float64]
    tie_break: NDArray[np.float64] = field(default_factory=partial(np.zeros, 0))
    """Decides between equal scores; same shape. Default: zeros."""
    method: str
    unit: Unit = "class"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the scores came from: surrogate checkpoint, fingerprints, arguments."""

    def __post_init__(self) -> None:
        if not np.size(self.tie_break):
            object.__setattr__(self, "tie_break", np.zeros_like(self.scores, dtype=np.float64))
        for name in ("scores", "tie_break"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise ValueError(
                    f"`{name}` must be a finite, non-empty vector; got shape {values.shape}. "
                    "Check what the scores were computed from."
                )
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.tie_break.shape != self.scores.shape:
            raise ValueError(
                f"`tie_break` must have the shape of `scores` {self.scores.shape}; got "
                f"{self.tie_break.shape}."
            )
        check_choice("unit", self.unit, ("class", "sample"))

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to `path` (`.npz`), atomically."""
        arrays = {"scores": self.scores, "tie_break": self.tie_break}
        header = {"method": self.method, "unit": self.unit, "provenance": dict(self.provenance)}
        save_artifact(path, _KIND, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Read scores from a file that `save` wrote."""
        arrays, header = load_artifact(path, _KIND, ("scores", "tie_break"))
        about = {name: header[name] for name in ("method", "unit", "provenance")}
        return cls(scores=arrays["scores"], tie_break=arrays["tie_break"], **about)

    @classmethod
    def of(cls, scores: "Scores | str | os.PathLike[str]") -> "Scores":
        """Return Scores; load them if `scores` is a path."""
        return cls.load(scores) if isinstance(scores, str | os.PathLike) else scores

    def __repr__(self) -> str:
        best = ", ".join(map(str, self.ranking()[:5]))
        return f"Scores({self.method}, {len(self)} x {self.unit}, best=[{best}, ...])"
