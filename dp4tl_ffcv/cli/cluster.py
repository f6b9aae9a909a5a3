"""The verb cluster."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Cluster a source's features by k-means: pseudo-classes for a source without labels."""

    features: Annotated[Path, tyro.conf.Positional]
    """Features of the whole source (`dp4tl features`), from any encoder."""
    num_clusters: tuple[int, ...]
    """Number of clusters. Of several numbers, the one with the largest silhouette is used."""
    out: Path
    """Clusters file (.npz) to write."""
    levels: tuple[int, ...] = ()
    """Numbers of clusters of the finer levels, largest first: their centroids are clustered."""
    seed: int = 0
    """Seed of the initial centroids and of --sample."""
    iterations: int = 25
    """Iterations of k-means on each level."""
    sample: int = 256
    """Number of random samples per cluster to fit the centroids to."""
    output: Output = field(default_factory=Output)

    def run(self) -> Any:
        """Cluster and save."""
        from .. import cluster

        given = vars(self).copy()
        del given["output"]
        return cluster(**given)
