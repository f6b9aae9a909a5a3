"""`cluster` on blobs with known clusters, and the file of `Clusters`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dp4tl_ffcv import Clusters, cluster
from tests.support.scores import clusters_of
from tests.support.threads import use_threads

faiss = pytest.importorskip("faiss")


def blobs(
    counts: tuple[int, ...] = (40, 25, 60, 31), width: int = 8, seed: int = 0, spread: float = 0.05
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return shuffled points around distant corners, and the corner of each point."""
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    points = np.eye(width)[owners % width] * (1 + owners // width)[:, None]
    return (points + rng.normal(0, spread, points.shape)).astype(np.float32), owners


def same_partition(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    pairs = {*zip(one.tolist(), other.tolist(), strict=True)}
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


def nearest(features: Any, centroids: Any) -> NDArray[np.int64]:
    differences = np.asarray(features, float)[:, None] - np.asarray(centroids, float)
    labels: NDArray[np.int64] = (differences**2).sum(axis=2).argmin(axis=1)
    return labels


# Plain k-means.


@pytest.mark.parametrize(
    ("dtype", "offset"),
    # A large offset must not blur the clusters.
    [(np.float16, 0), (np.float32, 0), (np.float64, 0), (np.float32, 3000)],
)
def test_blobs_are_found(dtype: Any, offset: float) -> None:
    features, owners = blobs()
    features = (features + np.float32(offset)).astype(dtype)
    clusters = cluster(features, 4, seed=1)
    assert same_partition(clusters.labels, owners)
    assert clusters.labels.dtype == np.int64
    assert clusters.centroids.dtype == np.float32
    expected = [features[clusters.labels == k].mean(axis=0) for k in range(4)]
    np.testing.assert_allclose(clusters.centroids, expected, atol=2e-3)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 300), st.integers(1, 5), st.integers(1, 20), st.integers(0, 1 << 40), st.data()
)
def test_every_sample_goes_to_its_nearest_centroid_and_no_cluster_is_empty(
    rows: int, width: int, count: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.integers(-3, 4, (rows, width)).astype(np.float32)  # many equal rows
    asked = min(count, rows)
    sample = data.draw(st.sampled_from([1, 3, 256]))
    clusters = cluster(features, asked, seed=seed, iterations=5, sample=sample)
    assert clusters.labels.tolist() == nearest(features, clusters.centroids).tolist()
    assert 1 <= clusters.num_clusters <= asked
    assert set(clusters.labels.tolist()) == set(range(clusters.num_clusters))


def test_there_are_at_most_as_many_clusters_as_distinct_samples() -> None:
    features = np.repeat(np.array([[0, 1], [2, 3]], np.float32), 30, axis=0)
    clusters = cluster(features, 5)
    assert clusters.num_clusters == 2
    assert same_partition(clusters.labels, np.repeat([0, 1], 30))
    # faiss splits a cluster by moving the centroids by a thousandth.
    np.testing.assert_allclose(sorted(clusters.centroids.tolist()), [[0, 1], [2, 3]], atol=5e-3)


def test_the_seed_determines_the_clusters() -> None:
    features = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    one, same, other = (
        cluster(features, 7, seed=seed, sample=20, iterations=3) for seed in (3, 3, 4)
    )
    assert one.digest() == same.digest() != other.digest()
    assert np.array_equal(one.centroids, same.centroids)


def test_the_centroids_are_fitted_to_the_sample_alone() -> None:
    features, _ = blobs((200, 200))
    centroid = cluster(features, 1, sample=5, seed=2).centroids[0]
    drawn = np.sort(np.random.default_rng(2).choice(400, 5, replace=False))
    np.testing.assert_allclose(centroid, features[drawn].mean(axis=0), atol=1e-6)


def test_more_iterations_bring_the_centroids_nearer() -> None:
    features = np.random.default_rng(5).normal(size=(2000, 3)).astype(np.float32)

    def spread(iterations: int) -> float:
        made = cluster(features, 20, iterations=iterations, sample=1000)
        return float(((features - made.centroids[made.labels]) ** 2).sum())

    assert spread(20) < 0.98 * spread(1)


# Levels.


def test_levels_merge_fine_clusters_and_samples_inherit() -> None:
    features, owners = blobs((30,) * 12, width=4, spread=0.01)  # 4 directions of 3 blobs each
    clusters = cluster(features, 4, levels=(40, 12), seed=3, iterations=50)
    assert clusters.num_clusters == 4
    for blob in range(12):
        assert len(set(clusters.labels[owners == blob].tolist())) == 1
    assert clusters.provenance["levels"] == [40, 12]


def test_levels_weigh_fine_clusters_alike() -> None:
    """Plain k-means splits a dense blob; with levels, it separates the blob from a sparse line."""
    rng = np.random.default_rng(0)
    dense = rng.normal((0, 0), 0.3, (4000, 2))
    line = np.stack((np.linspace(2, 6, 40), np.zeros(40)), axis=1)
    features = np.concatenate((dense, line)).astype(np.float32)
    last = {}
    for levels in ((), (60,)):
        clusters = cluster(features, 2, levels=levels, iterations=50, sample=10_000)
        last[levels] = np.bincount(clusters.labels).min()
    assert last[()] > 1000
    assert last[(60,)] <= 45


def test_a_level_may_have_fewer_clusters_than_the_next_level_asks_for() -> None:
    features = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    clusters = cluster(features, 5, levels=(30, 10))
    assert clusters.num_clusters == 3
    assert same_partition(clusters.labels, np.repeat(np.arange(3), 20))


# Memory maps and threads.


def test_memory_maps_give_the_same_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _ = blobs((300, 200, 400))
    half = features.astype(np.float16)
    np.save(tmp_path / "features.npy", half)
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    whole = cluster(half, 5, sample=30)
    monkeypatch.setattr("dp4tl_ffcv.scoring.inputs._BLOCK_BYTES", 8 * 8 * 64)
    mapped = cluster(stored, 5, sample=30)
    assert mapped.digest() == whole.digest()
    assert np.array_equal(mapped.centroids, whole.centroids)


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(9000, 33)).astype(np.float32)
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            faiss.omp_set_num_threads(threads)
            use_threads(monkeypatch, threads)
            made = cluster(features, (30, 61), levels=(200,), iterations=4)
            figures = tuple(made.provenance["silhouette"].values())
            found.append((made.digest(), made.centroids.tobytes(), figures))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert found[0] == found[1] == found[2]


# Several numbers of clusters.


def silhouette(features: NDArray[Any], clusters: Clusters) -> float:
    total = 0.0
    for row, label in zip(features.astype(float), clusters.labels, strict=True):
        distances = np.linalg.norm(row - clusters.centroids.astype(float), axis=1)
        a, b = distances[label], np.delete(distances, label).min()
        total += (b - a) / max(a, b)
    return total / len(features)


def test_the_number_of_blobs_is_found() -> None:
    features, owners = blobs((50,) * 5)
    clusters = cluster(features, (9, 2, 5, 3), seed=2)
    assert same_partition(clusters.labels, owners)
    figures = clusters.provenance["silhouette"]
    assert list(figures) == ["2", "3", "5", "9"]
    assert max(figures, key=figures.__getitem__) == "5"
    assert clusters.provenance["num_clusters"] == 5
    assert clusters.digest() == cluster(features, 5, seed=2).digest()


def test_silhouettes_follow_the_definition() -> None:
    features = np.random.default_rng(8).normal(size=(1500, 3)) + 40
    clusters = cluster(features, (1, 6), seed=3)
    assert clusters.provenance["silhouette"]["1"] == 0.0
    assert clusters.provenance["silhouette"]["6"] == pytest.approx(
        silhouette(features, cluster(features, 6, seed=3)), abs=1e-9
    )


def test_the_smaller_number_of_clusters_wins_a_tie() -> None:
    clusters = cluster(np.ones((6, 2)), (2, 1))
    assert clusters.provenance["silhouette"] == {"1": 0.0, "2": 0.0}
    assert clusters.provenance["num_clusters"] == 1


def test_silhouettes_of_a_sample_are_close_to_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs((300,) * 3, spread=0.3)
    exact = cluster(features, (3, 1)).provenance["silhouette"]["3"]
    monkeypatch.setattr("dp4tl_ffcv.scoring.clustering.kmeans._SILHOUETTE_ROWS", 200)
    drawn = cluster(features, (3, 1)).provenance["silhouette"]["3"]
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.05)


# `Clusters` and their file.


def test_clusters_come_back_from_their_file(tmp_path: Path) -> None:
    features, _ = blobs()
    clusters = cluster(features, 4, seed=1, out=tmp_path / "c.npz")
    loaded = Clusters.load(tmp_path / "c.npz")
    assert np.array_equal(loaded.labels, clusters.labels)
    assert np.array_equal(loaded.centroids, clusters.centroids)
    assert loaded.provenance == clusters.provenance
    assert loaded.provenance == {
        "method": "k-means", "num_clusters": 4, "levels": [], "seed": 1, "iterations": 25,
        "sample": 256,
    }  # fmt: skip
    assert loaded.digest() == clusters.digest()
    assert (len(loaded), loaded.num_clusters) == (156, 4)
    assert repr(loaded) == "Clusters(4 of 156 samples)"


def test_different_clusters_have_different_digests() -> None:
    digests = {
        clusters_of(labels, np.eye(3)[:count]).digest()
        for labels, count in (([0, 1], 2), ([1, 0], 2), ([0, 1], 3), ([0, 1, 0], 2))
    }
    assert len(digests) == 4


def test_clusters_are_immutable() -> None:
    labels, centroids = np.array([0, 1]), np.eye(2, dtype=np.float32)
    clusters = Clusters(labels=labels, centroids=centroids)
    labels[0] = 1
    centroids[0] = 7
    assert clusters.labels.tolist() == [0, 1]
    assert clusters.centroids.tolist() == np.eye(2).tolist()
    with pytest.raises(ValueError, match="read-only"):
        clusters.labels[0] = 1


# Bad input.


ROWS, LARGE = blobs()[0], np.eye(5, dtype=np.float32)
WITH_NAN = ROWS.copy()
WITH_NAN[0] = np.nan


@pytest.mark.parametrize(
    ("features", "num_clusters", "options", "error", "message"),
    [
        (ROWS, 0, {}, ValueError, r"^`num_clusters` must be in \[1, 156\]; got 0"),
        (ROWS, 157, {}, ValueError, r"^`num_clusters` must be in \[1, 156\]; got 157"),
        (ROWS, (), {}, ValueError, "^`num_clusters` must name distinct numbers"),
        (ROWS, (3, 3), {}, ValueError, "^`num_clusters` must name distinct numbers"),
        (ROWS, 4, {"levels": (4,)}, ValueError, "^`levels` must descend, and end above"),
        (ROWS, 4, {"levels": (8, 20)}, ValueError, "^`levels` must descend, and end above"),
        (ROWS, 4, {"levels": (157,)}, ValueError, r"^`levels` must be in \[1, 156\]; got 157"),
        (ROWS, 4, {"iterations": 0}, ValueError, "^`iterations` must be at least 1; got 0"),
        (ROWS, 4, {"sample": 0}, ValueError, "^`sample` must be at least 1; got 0"),
        (ROWS, 4, {"seed": -1}, ValueError, "^`seed` must be at least 0; got -1"),
        # faiss would end the process.
        (LARGE * np.float32(3e18), 4, {}, ValueError, "squares of more than .* overflow float32"),
        (LARGE * np.float32(1e37), 1, {}, ValueError, "squares of more than .* overflow float32"),
        (WITH_NAN, 2, {"sample": 1}, ValueError, "finite|NaN"),
        (WITH_NAN, 2, {}, ValueError, "^`features` hold NaN or inf"),
        ([[1e200], [-1e200]], 1, {}, ValueError, "^`features` hold .* values that overflow"),
        (np.zeros((0, 3), np.float32), 1, {}, ValueError, "^`features` must have at least one row"),
        ([[1, 2]], 1, {}, TypeError, "^`features` must be float16, float32 or float64"),
    ],
)
def test_bad_input_is_rejected(
    features: Any, num_clusters: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cluster(features, num_clusters, **options)


def test_features_far_from_the_origin_or_nearly_too_large_are_clustered() -> None:
    features = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    for moved in (features * np.float32(9e17), features * np.float32(1e17) + np.float32(1e20)):
        assert np.bincount(cluster(moved, 3).labels).tolist() == [5, 5, 5]


def test_all_numbers_are_checked_before_the_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dp4tl_ffcv.scoring.clustering.kmeans._fit", lambda *_: pytest.fail("started")
    )
    with pytest.raises(ValueError, match=r"^`num_clusters` must be in \[1, 156\]; got 500"):
        cluster(blobs()[0], (3, 500))


@pytest.mark.parametrize(
    ("labels", "centroids", "message"),
    [
        ([0, 2], np.eye(2), r"^`labels` must lie in \[0, 2\)"),
        ([-1, 0], np.eye(2), r"^`labels` must lie in \[0, 2\)"),
        ([], np.eye(2), "^`labels` must hold one pseudo-class per sample"),
        ([0], np.full((1, 2), np.nan), "^`centroids` must be finite"),
        ([0], np.zeros((0, 2)), "^`centroids` must be finite, with shape"),
    ],
)
def test_bad_clusters_are_rejected(labels: Any, centroids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clusters(labels=np.array(labels, dtype=np.int64), centroids=centroids)


def test_without_faiss_the_error_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"^k-means needs faiss-cpu, .* `pip install faiss-cpu`"):
        cluster(np.ones((3, 2), np.float32), 1)
