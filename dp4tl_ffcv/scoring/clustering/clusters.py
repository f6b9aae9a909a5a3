"""Clusters: a pseudo-class for every sample of a source without labels, and their file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts import load_artifact, save_artifact
from ...kernels.checks import as_features, as_labels

_KIND = "clusters"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """A pseudo-class for every sample of a source.

    Make one with `cluster`, or from any other clustering of the samples.
    """

    labels: NDArray[np.int64]
    """Pseudo-class of each sample `(N,)`, in `[0, K)`; entry i belongs to sample id i."""
    centroids: NDArray[np.float32]
    """`(K, D)`, in the space of the features that were clustered."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Arguments, features, and the beton that holds the samples."""

    def __post_init__(self) -> None:
        centroids = np.array(as_features(self.centroids, "centroids"), dtype=np.float32)
        if not len(centroids) or not np.isfinite(centroids).all():
            raise ValueError(
                f"`centroids` must be finite, with shape (K, D) and K >= 1; got shape "
                f"{centroids.shape}. Check the features that were clustered."
            )
        labels = np.array(as_labels(self.labels, len(centroids)))
        if not labels.size:
            raise ValueError("`labels` must hold one pseudo-class per sample; got none.")
        for name, values in (("labels", labels), ("centroids", centroids)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @property
    def num_clusters(self) -> int:
        """Number of clusters K."""
        return len(self.centroids)

    def digest(self) -> str:
        """Return a SHA-256, as hex digits, of which sample is in which pseudo-class."""
        return sha256(np.int64(self.num_clusters).tobytes() + self.labels.tobytes()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return what scores and selections record about the clusters they were made with."""
        about = dict(self.provenance)
        return {"num_clusters": self.num_clusters, "sha256": self.digest(), "provenance": about}

    def summary(self) -> dict[str, Any]:
        """Return what `dp4tl cluster` prints: sizes, and the silhouettes if several were tried."""
        sizes = np.bincount(self.labels, minlength=self.num_clusters)
        silhouette = self.provenance.get("silhouette")
        return {
            "samples": len(self),
            "clusters": self.num_clusters,
            "samples_per_cluster": {
                "min": int(sizes.min()),
                "median": float(np.median(sizes)),
                "max": int(sizes.max()),
            },
            **({"silhouette": dict(silhouette)} if silhouette else {}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clusters to `path` (`.npz`), atomically."""
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels, "centroids": self.centroids}
        save_artifact(path, _KIND, arrays, {"provenance": dict(self.provenance)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Clusters":
        """Read clusters from the file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
        """
        arrays, header = load_artifact(path, _KIND, ("labels", "centroids"))
        return cls(**arrays, provenance=header["provenance"])

    @classmethod
    def of(cls, clusters: "Clusters | str | os.PathLike[str]") -> "Clusters":
        """Return `clusters` if they are Clusters; load them if they are a path."""
        return cls.load(clusters) if isinstance(clusters, str | os.PathLike) else clusters

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Clusters({self.num_clusters} of {len(self)} samples)"
