"""`dp4tl select`: every option means what the library's argument means."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import IntField

from dp4tl_ffcv import Scores, Selection, select, write_beton
from dp4tl_ffcv.scoring import random_scores
from dp4tl_ffcv.scoring.clustering.clusters import Clusters
from dp4tl_ffcv.scoring.combine import combine_scores
from tests.conftest import CLASS_NAMES, Images

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def scored(photos: Images, given: Path, tmp_path: Path) -> dict[str, Scores]:
    """Scores of classes, samples and pseudo-classes, each saved under its name."""
    made_for = {"source_fingerprint": photos.index.fingerprint}
    of_clusters = {
        **made_for,
        "clusters_sha256": Clusters.load(given / "clusters.npz").digest(),
    }
    made = {
        "a": random_scores(10, seed=1, provenance=made_for),
        "b": random_scores(10, seed=2),
        "samples": random_scores(120, seed=3, unit="sample", provenance=made_for),
        "pseudo": random_scores(4, seed=4, provenance=of_clusters),
    }
    for name, scores in made.items():
        scores.save(tmp_path / f"{name}.npz")
    return made


@pytest.fixture
def chosen(run: Run, photos: Images, tmp_path: Path) -> Callable[..., Selection]:
    """Select from the named scores, and check what is printed."""

    def call(names: str, *options: object) -> Selection:
        out = tmp_path / "selection.npz"
        files = [tmp_path / f"{name}.npz" for name in names]
        result = run("select", "--scores", *files, "--beton", photos.path, *options, "--out", out)
        selection = Selection.load(out)
        index = photos.index
        assert result["retained_samples"] == len(selection.indices)
        assert result["retained_bytes"] == index.sample_bytes()[selection.indices].sum()
        assert result["classes"] == [CLASS_NAMES[c] for c in selection.classes]
        return selection

    return call


def same(found: Selection, expected: Selection) -> None:
    assert found.digest() == expected.digest()
    assert found.provenance == expected.provenance


@pytest.mark.parametrize("size", ["30000", "30kB", "0.03MB"])
def test_a_budget_of_bytes(
    size: str, chosen: Callable[..., Selection], scored: dict[str, Scores], photos: Images
) -> None:
    found = chosen(["a"], "--keep-bytes", size)
    same(found, select(scored["a"], photos.index, keep_bytes=30_000))
    assert photos.index.sample_bytes()[found.indices].sum() <= 30_000


def test_samples_within_kept_classes(
    chosen: Callable[..., Selection], scored: dict[str, Scores], photos: Images, tmp_path: Path
) -> None:
    within = ("--within", tmp_path / "samples.npz", "--keep-within", "0.5")
    found = chosen(["a"], "--keep-classes", 4, *within)
    expected = select(
        scored["a"], photos.index, keep_classes=4, within=scored["samples"], keep_within=0.5
    )
    same(found, expected)
    assert len(found.indices) == 4 * 6


def test_samples_balanced_over_classes(
    chosen: Callable[..., Selection], scored: dict[str, Scores], photos: Images
) -> None:
    found = chosen(["samples"], "--keep", 0.25, "--balanced")
    same(found, select(scored["samples"], photos.index, keep=0.25, balanced=True))
    assert np.bincount(photos.labels[found.indices]).tolist() == [3] * 10


def test_samples_balanced_over_pseudo_classes(
    chosen: Callable[..., Selection],
    scored: dict[str, Scores],
    photos: Images,
    given: Path,
) -> None:
    clusters = given / "clusters.npz"
    found = chosen(["samples"], "--keep", 0.5, "--balanced", "--clusters", clusters)
    loaded = Clusters.load(clusters)
    expected = select(scored["samples"], photos.index, keep=0.5, balanced=True, clusters=loaded)
    same(found, expected)


def test_pseudo_classes(
    run: Run, scored: dict[str, Scores], photos: Images, given: Path, tmp_path: Path
) -> None:
    clusters, out = given / "clusters.npz", tmp_path / "selection.npz"
    inputs = ("--scores", tmp_path / "pseudo.npz", "--beton", photos.path)
    result = run("select", *inputs, "--clusters", clusters, "--keep-classes", 2, "--out", out)
    loaded = Clusters.load(clusters)
    best = sorted(scored["pseudo"].ranking()[:2].tolist())
    assert result["pseudo_classes"] == best
    retained = np.flatnonzero(np.isin(loaded.labels, best))
    assert Selection.load(out).indices.tolist() == retained.tolist()


def test_pseudo_classes_of_a_source_without_labels(run: Run, given: Path, tmp_path: Path) -> None:
    index = write_beton(
        tmp_path / "bare.beton",
        [(number,) for number in range(120)],
        {"x": IntField()},
        label_field="x",
        seed=None,
    )
    clusters = Clusters.load(given / "clusters.npz")
    Clusters(labels=clusters.labels, centroids=clusters.centroids).save(tmp_path / "bare.npz")
    about = {"clusters_sha256": clusters.digest()}
    random_scores(4, seed=0, provenance=about).save(tmp_path / "scores.npz")
    inputs = ("--scores", tmp_path / "scores.npz", "--beton", index.path, "--keep", 0.5)
    out = tmp_path / "selection.npz"
    result = run("select", *inputs, "--clusters", tmp_path / "bare.npz", "--out", out)
    assert result["classes"] == []
    assert len(result["pseudo_classes"]) == 2
    assert result["retained_samples"] == len(Selection.load(out).indices)


@pytest.mark.parametrize("how", [None, "sum", "max", "rank", "round-robin"])
@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_several_targets(
    how: Any,
    weights: tuple[float, ...],
    chosen: Callable[..., Selection],
    scored: dict[str, Scores],
    photos: Images,
) -> None:
    options = (*(("--combine", how) if how else ()), *(("--weights", *weights) if weights else ()))
    found = chosen(["a", "b"], "--keep", 0.3, *options)
    combined = combine_scores([scored["a"], scored["b"]], how=how or "sum", weights=weights or None)
    same(found, select(combined, photos.index, keep=0.3))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("a --keep 0.5 --keep-bytes 1GB", "exactly one"),
        ("a --keep-bytes much", "`keep_bytes`"),
        ("a --keep-bytes 1", "Raise it"),
        ("a --keep 0.5 --keep-within 0.5", "given together"),
        ("a --keep 0.5 --within samples.npz", "given together"),
        ("a --keep 0.5 --within b.npz --keep-within 0.5", "`within` must be sample scores"),
        ("a --keep 0.5 --balanced", "`balanced`"),
        ("samples --keep-samples 5 --balanced", "`balanced`"),
        ("samples --keep-classes 5", "`keep_classes` must not be given"),
        ("pseudo --keep 0.5", "`clusters` must be given"),
        ("a,samples --keep 0.5", "one unit"),
        ("a,pseudo --keep 0.5", "one number of entries"),
        ("a,b --keep 0.5 --weights 1", "`weights`"),
        ("a,b --keep 0.5 --weights 1 0", "`weights`"),
        ("a --keep 0.5 --weights 1 2", "`weights`"),
        ("a,nowhere --keep 0.5", "nowhere.npz"),
        ("a --keep 0.5 --clusters b.npz", "clusters file"),
        (" --keep 0.5", "at least one"),
    ],
)
@pytest.mark.usefixtures("scored")
def test_bad_input_is_one_line(
    arguments: str, says: str, fail: Callable[..., str], photos: Images, tmp_path: Path
) -> None:
    names, *words = arguments.split(" ")
    files = [tmp_path / f"{name}.npz" for name in names.split(",") if name]
    options = [tmp_path / word if word.endswith(".npz") else word for word in words]
    out = tmp_path / "never.npz"
    line = fail("select", "--scores", *files, "--beton", photos.path, *options, "--out", out)
    assert says in line
    assert not out.exists()


def test_pseudo_classes_of_another_beton_are_one_line(
    fail: Callable[..., str], scored: dict[str, Scores], photos: Images, given: Path, tmp_path: Path
) -> None:
    inputs = ("--scores", tmp_path / "pseudo.npz", "--beton", photos.path, "--keep", 0.5)
    foreign = given / "foreign_clusters.npz"
    line = fail("select", *inputs, "--clusters", foreign, "--out", tmp_path / "never.npz")
    assert photos.index.fingerprint[:16] in line
