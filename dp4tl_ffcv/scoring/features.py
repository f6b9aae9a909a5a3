"""What a surrogate says about the samples of a beton: logits and pooled features, as a file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import load_artifact, save_artifact
from ..errors import StaleArtifactError

__all__ = ["Features", "check_same_surrogate"]

_KIND = "features"
_ARRAYS = ("logits", "features", "labels", "indices")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """A surrogate's outputs on n samples, row by row."""

    logits: NDArray[np.float32]
    """`(n, C)`, over the classes that the surrogate was trained on."""
    features: NDArray[np.float32]
    """`(n, D)`, the input of the classifier's last layer, not normalised."""
    labels: NDArray[np.int64]
    """`(n,)`, the samples' own labels: source classes for a source, target classes for a target."""
    indices: NDArray[np.int64]
    """`(n,)`, sample ids in the beton."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Surrogate checkpoint and beton."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` (`.npz`), atomically."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        save_artifact(path, _KIND, arrays, {"provenance": dict(self.provenance)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Features":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no features.
        """
        arrays, header = load_artifact(path, _KIND, _ARRAYS)
        return cls(provenance=header["provenance"], **arrays)


def check_same_surrogate(target: Features, source: Features) -> None:
    """Raise StaleArtifactError unless both were computed by the same surrogate, in the same way."""
    for name in ("checkpoint_sha256", "arch", "resolution", "crop_ratio"):
        one, other = target.provenance.get(name), source.provenance.get(name)
        if one != other:
            raise StaleArtifactError(
                f"`source` must come from the target's surrogate; got {name} {other} for the "
                f"source and {one} for the target. Extract both features alike."
            )
