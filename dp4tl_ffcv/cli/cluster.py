"""The verb cluster."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import Output
from .scoring import load_source


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Cluster a source's features by k-means: pseudo-classes for a source without labels."""

    features: Annotated[Path, tyro.conf.Positional]
    """Features of the source (`dp4tl features`), of any encoder."""
    num_clusters: tuple[int, ...]
    """Number of clusters; of several, the one with the largest silhouette is kept."""
    out: Path
    """Clusters file (.npz) to write."""
    levels: tuple[int, ...] = ()
    """Numbers of clusters of finer levels, finest first, that the clusters are made of."""
    seed: int = 0
    """Of the first centroids, and of the samples that they are fitted to."""
    iterations: int = 25
    """Of k-means, on each level."""
    sample: int = 256
    """Samples per cluster that the centroids are fitted to."""
    output: Output = field(default_factory=Output)

    def run(self) -> dict[str, Any]:
        """Cluster and save."""
        import numpy as np

        from ..scoring.clustering.kmeans import cluster, sweep_clusters

        source = load_source(self.features)
        about = dict(source.provenance)
        options: dict[str, Any] = {
            "levels": self.levels,
            "seed": self.seed,
            "iterations": self.iterations,
            "sample": self.sample,
            "provenance": {
                "features": about,
                "source_fingerprint": about.get("beton_fingerprint"),
            },
        }
        if len(self.num_clusters) == 1:
            clusters = cluster(source.features, self.num_clusters[0], **options)
        else:
            clusters = sweep_clusters(source.features, self.num_clusters, **options)
        clusters.save(self.out)
        sizes = np.bincount(clusters.labels, minlength=clusters.num_clusters)
        result = {
            "out": str(self.out),
            "samples": len(clusters),
            "clusters": clusters.num_clusters,
            "samples_per_cluster": {
                "min": int(sizes.min()),
                "median": float(np.median(sizes)),
                "max": int(sizes.max()),
            },
        }
        sweep = clusters.provenance.get("sweep")
        return {**result, "silhouette": sweep} if sweep else result
