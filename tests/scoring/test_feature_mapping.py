"""`class_means` and `feature_mapping` against a plain double loop over the paper's definition."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_ffcv import class_means, feature_mapping

DTYPES = [np.float16, np.float32, np.float64]
NUMBERS = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 1.5])  # coarse, so that distances are equal


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, Any, Any, int]:
    """Source features and labels, target features, number of classes."""
    num_classes, depth = draw(st.integers(1, 6)), draw(st.integers(1, 4))

    def rows(count: int) -> Any:
        size = count * depth
        flat = draw(st.lists(NUMBERS, min_size=size, max_size=size))
        return np.array(flat, dtype=draw(st.sampled_from(DTYPES))).reshape(count, depth)

    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=15))
    return rows(len(labels)), np.array(labels), rows(draw(st.integers(1, 10))), num_classes


def means_by_hand(features: Any, labels: Any, num_classes: int) -> list[list[float] | None]:
    means: list[list[float] | None] = []
    for c in range(num_classes):
        rows = [row for row, label in zip(features.tolist(), labels, strict=True) if label == c]
        total = [sum(values) for values in zip(*rows, strict=True)]
        means.append([value / len(rows) for value in total] if rows else None)
    return means


def votes_by_hand(target: Any, means: list[list[float] | None]) -> list[int]:
    """Count votes as the authors' moderate_selection.py (`ffm`) defines them, in float64.

    Each image votes for the class whose mean has the least L2 distance, the first of equals.
    Nothing is normalised.
    """
    votes = [0] * len(means)
    for row in target.tolist():
        distances = [np.inf if mean is None else math.dist(row, mean) for mean in means]
        votes[distances.index(min(distances))] += 1
    return votes


@given(problems())
def test_class_means_are_the_means_of_each_class(problem: tuple[Any, Any, Any, int]) -> None:
    features, labels, _, num_classes = problem
    means = class_means(features, labels, num_classes)
    assert means.dtype == np.float64
    for found, expected in zip(means, means_by_hand(features, labels, num_classes), strict=True):
        if expected is None:
            assert np.isnan(found).all()
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def distinct(target: Any, means: list[list[float] | None]) -> bool:
    """Return whether every image's nearest mean is nearer by more than rounding errors."""
    present = np.array([mean for mean in means if mean is not None])
    distances = np.linalg.norm(target.astype(np.float64)[:, None] - present[None], axis=2)
    distances.sort(axis=1)
    return len(present) == 1 or bool((distances[:, 1] - distances[:, 0] > 1e-9).all())


@given(problems())
def test_each_image_votes_for_the_nearest_class_mean(problem: tuple[Any, Any, Any, int]) -> None:
    features, labels, target, num_classes = problem
    scores = feature_mapping(target, class_means(features, labels, num_classes))
    means = means_by_hand(features, labels, num_classes)
    assert scores.scores.sum() == len(target)
    if distinct(target, means):
        assert scores.scores.tolist() == votes_by_hand(target, means)
    absent = [c for c, mean in enumerate(means) if mean is None]
    assert not scores.scores[absent].any()
    assert not scores.tie_break[absent].any()
    assert (scores.method, scores.unit) == ("feature_mapping", "class")


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_are_not_normalised(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    # Class means of different lengths: normalised features would vote differently.
    centres = rng.normal(size=(30, 16)) * rng.uniform(0.2, 3.0, (30, 1))
    labels = rng.permutation(np.repeat(np.arange(30), 20))
    features = (centres[labels] + rng.normal(0, 0.5, (600, 16))).astype(dtype)
    target = (rng.normal(size=(150, 16)) * rng.uniform(0.2, 3.0, (150, 1))).astype(dtype)
    scores = feature_mapping(target, class_means(features, labels, 30))
    means = means_by_hand(features, labels, 30)
    assert scores.scores.tolist() == votes_by_hand(target, means)
    lengths = np.linalg.norm(target.astype(float), axis=1, keepdims=True)
    assert scores.scores.tolist() != votes_by_hand(target / lengths, means)


def test_equal_distances_go_to_the_lowest_class() -> None:
    means = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    assert feature_mapping([[0.0, 0.0]], means).scores.tolist() == [1, 0, 0]
    assert feature_mapping([[-1.0, 1.0]], means).scores.tolist() == [0, 1, 0]


ZEROS = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("target", "means", "error", "message"),
    [
        (np.zeros((0, 2)), ZEROS, ValueError, "`target` holds no image"),
        (np.zeros((2, 3)), ZEROS, ValueError, "must have .*got"),
        (np.full((2, 2), np.nan), ZEROS, ValueError, "finite"),
        (np.zeros((2, 2)), np.full((3, 2), np.inf), ValueError, "finite"),
        (np.zeros((2, 2)), np.full((3, 2), np.nan), ValueError, "no class has samples"),
    ],
)
def test_bad_features_are_rejected(
    target: Any, means: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        feature_mapping(target, means)


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (ZEROS, [0, 1], ValueError, "got"),
        (ZEROS, [0, 1, 3], ValueError, r"`labels` must lie in \[0, 3\); got values from 0 to 3"),
        # NaN here must not pass for a class without samples.
        (ZEROS + np.nan, [0, 1, 1], ValueError, "`features` must be finite"),
        (ZEROS + np.inf, [0, 1, 1], ValueError, "`features` must be finite"),
    ],
)
def test_bad_input_of_class_means_is_rejected(
    features: Any, labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_means(features, labels, 3)
