"""Scores: one number per source class or sample, and the order that they define."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import load_artifact, save_artifact

_KIND = "scores"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """A score per source class `(C,)` or per source sample `(N,)`; higher is kept first."""

    scores: NDArray[np.float64]
    tie: NDArray[np.float64]
    """Second key, same shape: decides between equal scores."""
    method: str
    unit: Literal["class", "sample"] = "class"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the scores came from: surrogate checkpoint, fingerprints, arguments."""

    def __post_init__(self) -> None:
        for name in ("scores", "tie"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise ValueError(
                    f"`{name}` must be finite, with shape (C,) and C >= 1; got shape "
                    f"{values.shape}. Check what the scores were computed from."
                )
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if self.tie.shape != self.scores.shape:
            raise ValueError(
                f"`tie` must have the shape of `scores` {self.scores.shape}; got {self.tie.shape}. "
                "Pass one tie key per score."
            )
        if self.unit not in ("class", "sample"):
            raise ValueError(f"`unit` must be class or sample; got {self.unit!r}. Choose one.")

    def __len__(self) -> int:
        return len(self.scores)

    def ranking(self) -> NDArray[np.int64]:
        """Return the ids from best to worst: score descending, then tie descending, then id.

        The order is total, so every machine selects the same classes.
        """
        return np.lexsort((np.arange(len(self)), -self.tie, -self.scores)).astype(np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to `path` (`.npz`), atomically."""
        arrays = {"scores": self.scores, "tie": self.tie}
        header = {"method": self.method, "unit": self.unit, "provenance": dict(self.provenance)}
        save_artifact(path, _KIND, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Scores":
        """Read scores that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no scores.
        """
        arrays, header = load_artifact(path, _KIND, ("scores", "tie"))
        return cls(
            scores=arrays["scores"],
            tie=arrays["tie"],
            method=header["method"],
            unit=header["unit"],
            provenance=header["provenance"],
        )

    def __repr__(self) -> str:
        best = ", ".join(map(str, self.ranking()[:5]))
        return f"Scores({self.method}, {len(self)} x {self.unit}, best=[{best}, ...])"
