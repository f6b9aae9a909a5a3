"""Training dynamics: how well a run predicted each of its samples, epoch by epoch.

`dp4tl pretrain --record-dynamics` writes them. The methods forgetting, AUM, Dyn-Unc and TDDS score
samples by them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Artifact
from ..validate import check_int, check_int_array
from .combine import mean_scores
from .inputs import blocks
from .scores import Scores

_WINDOW = 10  # epochs, as in the papers of Dyn-Unc and TDDS
_BLOCK_BYTES = 1 << 22  # of one matrix as float64: windows take several times as much


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dynamics(Artifact):
    """Predictions of M samples in the E epochs of a training run, each made when it was trained on.

    Matrices are `(M, E)` of float16, with NaN where an epoch did not include the sample: the last,
    incomplete batch of an epoch is dropped. A row takes 6 E bytes.
    """

    KIND = "dynamics"
    ARRAYS: ClassVar = {
        "indices": (np.int64, 1),
        "probability": (np.float16, 2),
        "margin": (np.float16, 2),
        "change": (np.float16, 2),
    }
    FACTS: ClassVar = {"num_samples": int, "provenance": dict[str, Any]}

    indices: NDArray[np.int64]
    """Sample ids in the beton `(M,)`, ascending."""
    probability: NDArray[np.float16]
    """Softmax output of the true class."""
    margin: NDArray[np.float16]
    """Logit of the true class minus the largest other logit; above 0 if the prediction is right."""
    change: NDArray[np.float16]
    """`sum_c |p[c] log(p[c] / q[c])|`, with the softmax outputs p of this epoch and q of the epoch
    before; NaN if that epoch did not include the sample."""
    num_samples: int
    """Number of samples in the beton."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the dynamics came from: fingerprint of the beton, settings of the run."""

    def __post_init__(self) -> None:
        check_int("num_samples", self.num_samples, 1)
        ids = check_int_array("indices", self.indices, below=self.num_samples).copy()
        if not ids.size or (np.diff(ids) <= 0).any():
            raise ValueError("`indices` must be ascending sample ids, each once.")
        shape = np.shape(self.probability)
        for name in ("probability", "margin", "change"):
            values = np.array(getattr(self, name), dtype=np.float16)
            if values.shape != shape or len(shape) != 2 or shape[0] != len(ids) or not shape[1]:
                raise ValueError(
                    f"`{name}` must have shape (M, E) with M = {len(ids)} samples; got "
                    f"{values.shape}."
                )
            if np.isinf(values).any():
                raise ValueError(f"`{name}` must be finite, or NaN where there is no value.")
            self._freeze(**{name: values})
        self._freeze(indices=ids)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_epochs(self) -> int:
        """Number of recorded epochs E."""
        return int(self.margin.shape[1])


DynamicsLike = Dynamics | str | os.PathLike[str]
Rows = NDArray[np.float64]


def score_dynamics(
    method: str,
    dynamics: DynamicsLike | list[DynamicsLike] | tuple[DynamicsLike, ...],
    function: Callable[[Dynamics, Rows], tuple[Rows, Rows] | Rows],
    *,
    of: str,
    **options: Any,
) -> Scores:
    """Return scores of all samples of a source, averaged over runs.

    Samples without a score come last.

    Args:
        method: name of the method.
        dynamics: the dynamics of a run, or of several.
        function: gets the dynamics and a block of rows `(n, E)` of the matrix `of`, in which the
            values of a sample end in the last column and missing values come first. It returns
            scores `(n,)`, and tie-break scores if the method has some; NaN for no score.
        of: name of the matrix.
        options: options of the method to record.
    """
    runs = []
    for given in dynamics if isinstance(dynamics, list | tuple) else [dynamics]:
        run = Dynamics.of(given)
        found = np.full((2, run.num_samples), np.nan)
        matrix = getattr(run, of)
        for rows in blocks(matrix, _BLOCK_BYTES):
            result = function(run, _aligned(matrix[rows]))
            both = result if isinstance(result, tuple) else (result, np.zeros(len(result)))
            found[:, run.indices[rows]] = both
        has_score = np.isfinite(found[0])
        if not has_score.any():
            raise ValueError(
                f"`dynamics` has too few epochs, {run.num_epochs}, for {method} to score a sample. "
                "Record a longer run."
            )
        found[0, ~has_score] = found[0, has_score].min() - 1
        found[1, ~has_score] = 0
        about = {"dynamics": dict(run.provenance), **options}
        if "source_fingerprint" in run.provenance:
            about["source_fingerprint"] = run.provenance["source_fingerprint"]
        runs.append(
            Scores(
                scores=found[0],
                tie_break=found[1],
                method=method,
                unit="sample",
                provenance=about,
            )
        )
    return mean_scores(runs)


def window_of(run: Dynamics, window: int | None) -> int:
    """Return the number of epochs in a window; by default 10, or all epochs of a shorter run."""
    if window is None:
        return min(_WINDOW, run.num_epochs)
    if check_int("window", window, 2) > run.num_epochs:
        raise ValueError(
            f"`window` is {window}, but `dynamics` has {run.num_epochs} epochs. Pass a smaller "
            "window, or record a longer run."
        )
    return window


def mean_recorded(rows: Rows) -> Rows:
    """Return the mean of each row without its missing values; NaN if all are missing."""
    count = (~np.isnan(rows)).sum(axis=1)
    means = np.full(len(rows), np.nan)
    np.divide(np.nansum(rows, axis=1), count, out=means, where=count > 0)
    return means


def _aligned(rows: NDArray[np.float16]) -> Rows:
    """Return rows as float64, with the missing values of each row before the others."""
    missing = np.isnan(rows)
    if missing.any():
        rows = np.take_along_axis(rows, np.argsort(~missing, axis=1, kind="stable"), axis=1)
    return rows.astype(np.float64)
