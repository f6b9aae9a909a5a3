"""`dp4tl cluster`: what the library gives, for one number of clusters or the best of several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Features
from dp4tl_ffcv.scoring.clustering.kmeans import Clusters, cluster, sweep_clusters
from tests.conftest import Images

pytest.importorskip("faiss")


@pytest.mark.parametrize("name", ["source", "shuffled", "no_outputs"])
def test_clusters_of_one_number(
    name: str, run: Callable[..., Any], given: Path, photos: Images, tmp_path: Path
) -> None:
    out = tmp_path / "clusters.npz"
    options = ("--num-clusters", 5, "--levels", 20, 10, "--seed", 3, "--out", out)
    result = run("cluster", given / name, *options)
    found = Clusters.load(out)
    features = Features.load(given / "source").features  # entry i is of sample id i
    expected = cluster(features, 5, levels=(20, 10), seed=3)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint
    assert found.provenance["features"]["arch"] == "none"
    sizes = np.bincount(expected.labels)
    assert result == {
        "out": str(out),
        "samples": 120,
        "clusters": expected.num_clusters,
        "samples_per_cluster": {
            "min": sizes.min(),
            "median": np.median(sizes),
            "max": sizes.max(),
        },
    }


def test_the_best_of_several_numbers(run: Callable[..., Any], given: Path, tmp_path: Path) -> None:
    out = tmp_path / "clusters.npz"
    options = ("--iterations", 5, "--sample", 30)
    result = run("cluster", given / "source", "--num-clusters", 3, 10, 6, *options, "--out", out)
    features = Features.load(given / "source").features
    expected = sweep_clusters(features, [3, 10, 6], iterations=5, sample=30)
    found = Clusters.load(out)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert result["clusters"] == expected.num_clusters
    assert result["silhouette"] == expected.provenance["sweep"]
    assert set(result["silhouette"]) == {"3", "6", "10"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("incomplete", "--num-clusters", "3"), "whole source"),
        (("nowhere", "--num-clusters", "3"), "nowhere"),
        (("clusters.npz", "--num-clusters", "3"), "clusters.npz"),
        (("source", "--num-clusters", "0"), "`num_clusters` must lie in [1, 120]"),
        (("source", "--num-clusters", "121"), "not more samples"),
        (("source", "--num-clusters", "3", "3"), "each number of clusters once"),
        (("source", "--num-clusters"), "each number of clusters once"),
        (("source", "--num-clusters", "3", "--levels", "2"), "`levels` must descend"),
        (("source", "--num-clusters", "3", "--seed", "-1"), "`seed`"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], says: str, fail: Callable[..., str], given: Path, tmp_path: Path
) -> None:
    name, *options = arguments
    line = fail("cluster", given / name, *options, "--out", tmp_path / "never.npz")
    assert says in line
    assert not list(tmp_path.iterdir())
