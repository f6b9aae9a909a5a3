"""`dp4tl cluster` gives what `cluster` gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Clusters, Features, cluster
from tests.conftest import Images

pytest.importorskip("faiss")


def test_one_number_of_clusters(
    run: Callable[..., Any], given: Path, photos: Images, tmp_path: Path
) -> None:
    out = tmp_path / "clusters.npz"
    options = ("--num-clusters", 5, "--levels", 20, 10, "--seed", 3, "--out", out)
    result = run("cluster", given / "shuffled", *options)
    found = Clusters.load(out)
    features = Features.load(given / "source").features  # entry i belongs to sample id i
    expected = cluster(features, 5, levels=(20, 10), seed=3)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert found.provenance["source_fingerprint"] == photos.index.fingerprint
    assert found.provenance["features"]["arch"] == "none"
    sizes = np.bincount(expected.labels)
    spread = {"min": sizes.min(), "median": np.median(sizes), "max": sizes.max()}
    about = {"samples": 120, "clusters": expected.num_clusters, "samples_per_cluster": spread}
    assert result == {"out": str(out), **about}


def test_features_of_a_part_are_rejected(
    fail: Callable[..., str], given: Path, tmp_path: Path
) -> None:
    options = ("--num-clusters", 3, "--out", tmp_path / "never.npz")
    assert "whole source" in fail("cluster", given / "incomplete", *options)


def test_the_best_of_several_numbers(run: Callable[..., Any], given: Path, tmp_path: Path) -> None:
    out = tmp_path / "clusters.npz"
    options = ("--num-clusters", 3, 10, 6, "--iterations", 5, "--sample", 30, "--out", out)
    result = run("cluster", given / "source", *options)
    expected = cluster(given / "source", [3, 10, 6], iterations=5, sample=30)
    assert Clusters.load(out).digest() == expected.digest()
    assert result["silhouette"] == expected.provenance["silhouette"]
    assert set(result["silhouette"]) == {"3", "6", "10"}
