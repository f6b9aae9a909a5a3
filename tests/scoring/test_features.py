"""`Features`: the file, and the check that two of them belong together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Features, StaleArtifactError, random_scores
from dp4tl_ffcv.scoring.features import check_same_surrogate

SURROGATE = {
    "checkpoint_sha256": "ab" * 32, "arch": "resnet18", "resolution": 224, "crop_ratio": 0.875,
}  # fmt: skip


def features_with(**provenance: Any) -> Features:
    rng = np.random.default_rng(0)
    return Features(
        logits=rng.normal(size=(4, 3)).astype(np.float32),
        features=rng.normal(size=(4, 2)).astype(np.float32),
        labels=np.array([1, 0, 2, 1]),
        indices=np.array([5, 6, 7, 9]),
        provenance=provenance,
    )


def test_features_come_back_from_their_file(tmp_path: Path) -> None:
    saved = features_with(**SURROGATE, beton_fingerprint="cd" * 32)
    saved.save(tmp_path / "deep" / "f.npz")
    loaded = Features.load(tmp_path / "deep" / "f.npz")
    for name in ("logits", "features", "labels", "indices"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert loaded.provenance == saved.provenance


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    random_scores(3, seed=0).save(tmp_path / "s.npz")
    with pytest.raises(ValueError, match=r"^`path` must be a features file; got a scores file"):
        Features.load(tmp_path / "s.npz")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        Features.load(tmp_path / "none.npz")


def test_features_of_one_surrogate_belong_together() -> None:
    one = features_with(**SURROGATE, beton_fingerprint="cd" * 32)
    check_same_surrogate(one, features_with(**SURROGATE, beton_fingerprint="ef" * 32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_sha256", "00" * 32),
        ("arch", "resnet50"),
        ("resolution", 160),
        ("crop_ratio", 1.0),
        ("resolution", None),
    ],
)
def test_features_of_another_surrogate_or_crop_are_refused(name: str, value: Any) -> None:
    source = features_with(**{**SURROGATE, name: value})
    message = rf"^`source` must come from the target's surrogate; got {name} {value} for the source"
    with pytest.raises(StaleArtifactError, match=message):
        check_same_surrogate(features_with(**SURROGATE), source)
