"""Features and clusters of the photos, as an encoder might give them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Features
from dp4tl_ffcv.scoring.features.reductions import sum_soft_votes
from tests.support.scores import clusters_of


def random_features(images: Any, seed: int) -> Features:
    """Features of 6 dimensions and logits of 10 classes, as an encoder might give them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(10, 6))
    features = centres[images.labels] + rng.normal(size=(len(images.labels), 6))
    logits = rng.normal(size=(len(images.labels), 10)).astype(np.float32)
    return Features(
        features=features.astype(np.float32),
        labels=images.labels,
        indices=np.arange(len(images.labels)),
        logits=logits,
        predictions=logits.argmax(axis=1),
        soft_votes=sum_soft_votes(logits),
        provenance={"beton_fingerprint": images.index.fingerprint, "arch": "none"},
    )


@pytest.fixture(scope="session")
def given(photos: Any, other_photos: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of features and clusters: see the names."""
    folder = tmp_path_factory.mktemp("given")
    source, target = random_features(photos, 1), random_features(other_photos, 2)
    source.save(folder / "source")
    random_features(photos, 3).save(folder / "second_run")
    target.save(folder / "target")
    order = np.random.default_rng(4).permutation(len(source))
    shuffled_rows(source, order).save(folder / "shuffled")
    shuffled_rows(source, order[:-1]).save(folder / "incomplete")
    shuffled_rows(source, np.append(order[1:], order[1])).save(folder / "repeated")
    replace(source, logits=None).save(folder / "no_logits")
    bare = {"logits": None, "predictions": None, "soft_votes": None}
    replace(source, **bare).save(folder / "no_outputs")
    replace(target, **bare).save(folder / "target_no_outputs")
    replace(target, predictions=None, soft_votes=None).save(folder / "target_logits_only")
    replace(target, predictions=None, logits=None).save(folder / "target_votes_only")
    labels = np.random.default_rng(5).integers(0, 4, size=len(source))
    centroids = np.stack([source.features[labels == k].mean(axis=0) for k in range(4)])
    for name, images in (("clusters", photos), ("foreign_clusters", other_photos)):
        made_for = {"source_fingerprint": images.index.fingerprint}
        clusters_of(labels, centroids, **made_for).save(folder / f"{name}.npz")
    clusters_of(labels[:50], centroids).save(folder / "few_clusters.npz")
    return folder


def shuffled_rows(source: Features, order: Any) -> Features:
    names = ("features", "labels", "indices", "logits", "predictions")
    return replace(source, **{name: getattr(source, name)[order] for name in names})
