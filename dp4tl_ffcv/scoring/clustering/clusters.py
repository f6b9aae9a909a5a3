"""Clusters: a pseudo-class for each sample of a source, and their file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...artifacts import Artifact
from ...kernels.checks import as_features
from ...validate import check_int_array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters(Artifact):
    """A pseudo-class for each sample of a source, from `cluster` or from any other clustering."""

    KIND = "clusters"
    ARRAYS: ClassVar = {"labels": (np.int64, 1), "centroids": (np.float32, 2)}

    labels: NDArray[np.int64]
    """Pseudo-class of each sample `(N,)`, in `[0, K)`; entry i is for sample id i."""
    centroids: NDArray[np.float32]
    """Cluster centres `(K, D)`, in the space of the clustered features."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the clusters came from: arguments, features and the beton."""

    def __post_init__(self) -> None:
        centroids = np.array(as_features(self.centroids, "centroids"), dtype=np.float32)
        if not len(centroids) or not np.isfinite(centroids).all():
            raise ValueError(
                f"`centroids` must be finite, with shape (K, D) and K >= 1; got shape "
                f"{centroids.shape}. Check the features that were clustered."
            )
        labels = np.array(check_int_array("labels", self.labels, below=len(centroids)))
        if not labels.size:
            raise ValueError("`labels` must hold one pseudo-class per sample; got none.")
        self._freeze(labels=labels, centroids=centroids)

    @property
    def num_clusters(self) -> int:
        """Number of clusters K."""
        return len(self.centroids)

    def digest(self) -> str:
        """Return a SHA-256, as hex digits, of each sample's pseudo-class."""
        return sha256(np.int64(self.num_clusters).tobytes() + self.labels.tobytes()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return the provenance that scores and selections record about these clusters."""
        about = dict(self.provenance)
        return {"num_clusters": self.num_clusters, "sha256": self.digest(), "provenance": about}

    def summary(self) -> dict[str, Any]:
        """Return cluster sizes, and silhouettes if several numbers were tried, JSON-able."""
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

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Clusters({self.num_clusters} of {len(self)} samples)"
