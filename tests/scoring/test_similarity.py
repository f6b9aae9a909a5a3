"""`similarity` against all cosines, sample by sample and class by class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from dp4tl_ffcv import Features, StaleArtifactError
from dp4tl_ffcv.scoring import similarity
from tests.reference import cosines
from tests.support.threads import use_threads

FLOATS = [np.float16, np.float32, np.float64]


def features(seed: int, rows: int, dtype: Any = np.float32, columns: int = 5) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(dtype)


@drawn(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_sample_scores_its_mean_cosine_with_the_nearest_images(
    rows: int, images: int, data: st.DataObject
) -> None:
    neighbors = data.draw(st.integers(1, images))
    dtype = data.draw(st.sampled_from(FLOATS))
    source, target = features(1, rows, dtype), features(2, images, dtype)
    source[0] *= data.draw(st.sampled_from([0, 1]))
    scores = similarity(target, source, neighbors=neighbors, unit="sample")
    expected = cosines.similarities(source.astype(float), target.astype(float), neighbors)
    np.testing.assert_allclose(scores.scores, expected, atol=1e-6)
    assert (scores.method, scores.unit, scores.provenance) == (
        "similarity", "sample", {"neighbors": neighbors},
    )  # fmt: skip


@pytest.mark.parametrize("neighbors", [1, 3, 40])
def test_products_of_several_blocks_find_the_nearest_images(
    neighbors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = features(1, 50), features(2, 70)
    expected = cosines.similarities(source.astype(float), target.astype(float), neighbors)
    monkeypatch.setattr("dp4tl_ffcv.scoring.cosines._BLOCK", 16)
    found = similarity(target, source, neighbors=neighbors, unit="sample").scores
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_class_scores_the_mean_of_its_samples_and_absent_classes_are_last() -> None:
    source, target, labels = features(1, 6), features(2, 8), [0, 3, 0, 1, 3, 3]
    samples = similarity(target, source, unit="sample").scores
    scores = similarity(target, source, labels, 4)
    expected = [samples[np.array(labels) == c].mean() for c in (0, 1, 3)]
    np.testing.assert_allclose(scores.scores[[0, 1, 3]], expected, rtol=1e-12)
    assert (scores.unit, scores.ranking()[-1]) == ("class", 2)
    opposite = similarity(-np.ones((1, 1)), np.ones((1, 1)), [1], 2)
    assert opposite.ranking().tolist() == [1, 0]


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e200])
def test_lengths_do_not_matter(size: float) -> None:
    source, target = features(1, 5, np.float64), features(2, 5, np.float64)
    found = similarity(size * target, source / size, unit="sample")
    expected = similarity(target, source, unit="sample")
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("neighbors", [1, 4])
def test_bits_do_not_depend_on_threads_or_storage(
    neighbors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = features(1, 5000, np.float16, 24), features(2, 3000, np.float16, 24)
    np.save(tmp_path / "source.npy", source)
    stored = np.load(tmp_path / "source.npy", mmap_mode="r")
    found = []
    for threads in (1, 2, 4):
        use_threads(monkeypatch, threads)
        scores = similarity(target, stored, neighbors=neighbors, unit="sample")
        found.append(scores.scores.tobytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("unit", ["class", "sample"])
def test_features_and_folders_are_scored_in_the_order_of_ids(
    unit: Any, given: Path, photos: Any
) -> None:
    source, target = Features.load(given / "source"), Features.load(given / "target")
    labels = (source.labels, 10) if unit == "class" else ()
    expected = similarity(target.features, source.features, *labels, unit=unit)
    for name in ("source", "shuffled"):
        found = similarity(given / "target", given / name, unit=unit)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-12)
        assert found.provenance == {
            "target": dict(target.provenance),
            "source": dict(source.provenance),
            "source_fingerprint": photos.index.fingerprint,
            "neighbors": 1,
        }
    # Some samples of each class are enough to score classes, but not to score samples.
    if unit == "class":
        assert len(similarity(given / "target", given / "incomplete")) == 10
    else:
        with pytest.raises(ValueError, match="each sample id from 0 to 118 once"):
            similarity(given / "target", given / "incomplete", unit=unit)


def test_features_of_two_encoders_are_rejected(given: Path) -> None:
    target = Features.load(given / "target")
    other = replace(target, provenance={**target.provenance, "arch": "other"})
    with pytest.raises(StaleArtifactError, match="differ in arch"):
        similarity(other, given / "source")


TWO = np.ones((2, 2))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((TWO, TWO), {}, "^`labels` and `num_classes` are needed"),
        ((TWO, TWO, [0, 1]), {}, "^`labels` and `num_classes` are needed"),
        ((TWO, TWO, [0], 2), {}, "^`labels` must have one entry per row"),
        ((TWO, TWO), {"unit": "pixel"}, "^`unit` must be one of"),
        ((TWO, TWO), {"unit": "sample", "neighbors": 3}, r"^`neighbors` must be in \[1, 2\]"),
        ((TWO, TWO), {"unit": "sample", "neighbors": 0}, r"^`neighbors` must be in \[1, 2\]"),
        ((TWO, TWO[:, :1]), {"unit": "sample"}, "^`source` must have as many columns"),
        ((TWO[:0], TWO), {"unit": "sample"}, "^`target` holds no image"),
        ((TWO, TWO * np.nan), {"unit": "sample"}, "^`source` must be finite"),
        ((TWO * np.inf, TWO), {"unit": "sample"}, "^`target` must be finite"),
    ],
)
def test_bad_input_is_rejected(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity(*arguments, **options)
