"""`semdedup` against all cosines of each cluster."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from dp4tl_ffcv import Clusters, Features, StaleArtifactError, select
from dp4tl_ffcv.scoring import semdedup
from tests.conftest import Images
from tests.reference import cosines
from tests.support.scores import clusters_of
from tests.support.threads import use_threads


def problem(seed: int, rows: int, count: int, columns: int = 4, dtype: Any = np.float32) -> Any:
    """Rows, some of which point the same way, in clusters of any size."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(rows, columns)).astype(dtype)
    for _ in range(rows // 4):
        source[rng.integers(rows)] = source[rng.integers(rows)]
    centroids = rng.normal(size=(count, columns))
    return source, clusters_of(rng.integers(0, count, rows), centroids)


def expected(source: Any, clusters: Clusters) -> list[float]:
    rows, centroids = source.astype(float), clusters.centroids.astype(float)
    return cosines.distinctness(rows, clusters.labels.tolist(), centroids)


@drawn(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 4))
def test_a_sample_scores_its_cosine_with_the_harder_samples(
    seed: int, rows: int, count: int
) -> None:
    source, clusters = problem(seed, rows, count)
    scores = semdedup(source, clusters)
    np.testing.assert_allclose(scores.scores, expected(source, clusters), atol=1e-6)
    assert (scores.method, scores.unit) == ("semdedup", "sample")
    assert scores.provenance == {"clusters": clusters.described()}


def test_products_of_several_blocks_compare_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    source, clusters = problem(5, 90, 2)
    monkeypatch.setattr("dp4tl_ffcv.scoring.cosines._BLOCK", 16)
    found = semdedup(source, clusters).scores
    np.testing.assert_allclose(found, expected(source, clusters), atol=1e-6)


def test_of_duplicates_the_least_typical_is_kept_and_of_equal_ones_the_first() -> None:
    angles = np.radians([30, 80, 31, 79, 30, 0])
    source = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = semdedup(source, clusters_of([0] * 6, [[1.0, 0.0]]))
    # Hardest first: 1, 3 (its duplicate), 2, 0, 4 (equal to 0), 5.
    assert scores.scores[1] == 2
    near = 1 - np.cos(np.radians(1))
    np.testing.assert_allclose(scores.scores[[0, 3, 4]], [near, near, 0], atol=1e-6)
    assert scores.ranking()[:3].tolist() == [1, 2, 5]


def test_a_threshold_removes_what_the_paper_removes(given: Path, photos: Images) -> None:
    source, clusters = Features.load(given / "source"), Clusters.load(given / "clusters.npz")
    scores, eps = semdedup(given / "shuffled", given / "clusters.npz"), 0.05
    selection = select(scores, photos.index, min_score=eps)
    kept = [n for n, distinct in enumerate(expected(source.features, clusters)) if distinct >= eps]
    assert 0 < len(kept) < 120
    assert selection.indices.tolist() == kept
    assert scores.provenance["source_fingerprint"] == photos.index.fingerprint


def test_bits_do_not_depend_on_threads_or_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, clusters = problem(6, 7000, 3, 24, np.float16)
    np.save(tmp_path / "source.npy", source)
    stored = np.load(tmp_path / "source.npy", mmap_mode="r")
    found = []
    for threads in (1, 2, 4):
        use_threads(monkeypatch, threads)
        found.append(semdedup(stored, clusters).scores.tobytes())
    assert found[0] == found[1] == found[2]


def test_bad_input_is_rejected(given: Path) -> None:
    with pytest.raises(StaleArtifactError, match=r"^`clusters` were made for different sources"):
        semdedup(given / "source", given / "foreign_clusters.npz")
    with pytest.raises(ValueError, match=r"^`clusters` were made from features of shape"):
        semdedup(np.ones((3, 2)), clusters_of([0, 0], np.ones((1, 2))))
    with pytest.raises(ValueError, match=r"^`source` must be finite; got NaN or inf for sample 1"):
        semdedup(np.array([[1.0], [np.inf]]), clusters_of([0, 0], [[1.0]]))
