"""`label_mapping` and `soft_label_mapping` against their definitions, image by image."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dp4tl_ffcv.scoring import label_mapping, soft_label_mapping
from tests.support.scores import ranked

LOGITS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([-3.0, 0.0, 0.5, 0.5, 7.0]),  # equal maxima, too
)


def votes_by_hand(logits: Any) -> tuple[list[float], list[float]]:
    """Return the number of images whose first largest logit is each class, and softmax sums."""
    classes = len(logits[0])
    votes, soft = [0.0] * classes, [0.0] * classes
    for row in logits:
        row = [float(value) for value in row]
        votes[row.index(max(row))] += 1
        weights = [np.exp(value - max(row)) for value in row]
        for c, weight in enumerate(weights):
            soft[c] += weight / sum(weights)
    return votes, soft


@given(LOGITS)
def test_each_image_votes_for_its_predicted_class(logits: Any) -> None:
    scores = label_mapping(logits)
    votes, soft = votes_by_hand(logits)
    assert scores.scores.tolist() == votes
    np.testing.assert_allclose(scores.tie_break, soft, rtol=1e-12)
    assert scores.tie_break.sum() == pytest.approx(len(logits))
    assert (scores.method, scores.unit) == ("label_mapping", "class")


@pytest.mark.filterwarnings("error")
def test_logits_of_any_size_have_a_softmax() -> None:
    scores = label_mapping(np.array([[1e308, -1e308], [1e308, 1e308]]))
    assert scores.scores.tolist() == [2, 0]
    assert scores.tie_break.tolist() == [1.5, 0.5]


@given(st.lists(st.integers(0, 8), min_size=1), st.integers(9, 12))
def test_predictions_may_be_given_instead_of_logits(ids: list[int], num_classes: int) -> None:
    for given_ids in (ids, np.array(ids, np.uint8), torch.tensor(ids)):
        scores = label_mapping(given_ids, num_classes)
        assert scores.scores.tolist() == [ids.count(c) for c in range(num_classes)]
        assert not scores.tie_break.any()
    expected = sorted(range(num_classes), key=lambda c: (-ids.count(c), c))
    assert scores.ranking().tolist() == expected


@given(LOGITS, st.data())
def test_equal_columns_tie_to_the_bit(logits: Any, data: Any) -> None:
    classes = logits.shape[1]
    copies = data.draw(st.lists(st.integers(0, classes - 1), min_size=classes, max_size=classes))
    logits = logits[:, copies]
    scores = label_mapping(logits)
    for c in range(classes):
        assert scores.tie_break[c] == scores.tie_break[copies.index(copies[c])]
    assert scores.ranking().tolist() == ranked(scores)
    for options in ({}, {"num_classes": classes}):
        again = label_mapping(logits.argmax(axis=1), soft_votes=scores.tie_break, **options)
        assert again.scores.tolist() == scores.scores.tolist()
        assert again.ranking().tolist() == ranked(scores)


@given(LOGITS)
def test_soft_label_mapping_ranks_by_soft_votes(logits: Any) -> None:
    _, soft = votes_by_hand(logits)
    scores = soft_label_mapping(logits)
    np.testing.assert_allclose(scores.scores, soft, rtol=1e-12)
    assert (scores.method, scores.unit) == ("soft_label_mapping", "class")
    exact = scores.scores.tolist()
    assert scores.ranking().tolist() == ranked(scores)
    assert soft_label_mapping(scores.scores).scores.tolist() == exact
    assert exact == label_mapping(logits).tie_break.tolist()


@pytest.mark.parametrize(
    ("dtype", "rows"), [(np.float16, 50), (np.float32, 9001), (np.float64, 50)]
)
def test_logits_of_every_precision_and_more_than_one_block_count_alike(
    dtype: Any, rows: int
) -> None:
    logits = np.random.default_rng(0).normal(size=(rows, 7)).astype(dtype)
    votes, soft = votes_by_hand(logits)
    scores = label_mapping(torch.from_numpy(logits))
    assert scores.scores.tolist() == votes
    np.testing.assert_allclose(scores.tie_break, soft, rtol=1e-9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0, np.nan]], r"^`target` must be finite; got NaN or inf"),
        ([[1, 2]], r"^`target` must be float logits"),
        ([1, 2], r"^`target` must be float soft votes \(C,\), .*got shape \(2,\) of int64"),
        ([], r"^`target` must be float soft votes"),
        ([0.5, np.inf], r"^`target` must be finite and not negative"),
        ([0.5, -1.0], r"^`target` must be finite and not negative"),
    ],
)
def test_bad_soft_votes_are_rejected(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_label_mapping(values)


VOTES = {"soft_votes": [0.1, 0.9]}


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ([[0.0, np.nan]], {}, ValueError, r"^`target` must be finite; got NaN or inf"),
        ([[0.0, np.inf]], {}, ValueError, r"^`target` must be finite; got NaN or inf"),
        ([[1, 2]], {}, ValueError, r"^`target` must be float logits .*of int64"),
        (np.zeros((0, 3)), {}, ValueError, r"^`target` must be float logits .*\(0, 3\)"),
        (np.zeros((3, 0)), {}, ValueError, r"^`target` must be float logits .*\(3, 0\)"),
        (np.zeros((3, 2)), {"num_classes": 3}, ValueError, r"is 3, but `target` has 2 classes"),
        ([[0.0, 1.0]], VOTES, ValueError, r"^`soft_votes` are computed from logits"),
        ([0, 1], {**VOTES, "num_classes": 3}, ValueError, r"is 3, but `target` has 2 classes"),
        ([0, 2], VOTES, ValueError, r"must lie in \[0, 2\)"),
        ([0, 1], {"soft_votes": [0.1, np.nan]}, ValueError, r"^`soft_votes` must be finite"),
        ([0, 1], {"soft_votes": [[0.1, 0.9]]}, ValueError, r"^`soft_votes` must be float soft"),
        ([0, 1], {}, ValueError, r"^`num_classes` is needed with class ids"),
        ([], {"num_classes": 4}, ValueError, r"^`target` holds no image"),
        ([0.0, 1.0], {"num_classes": 4}, TypeError, r"must be integers; got dtype float64"),
        ([0], {"num_classes": 0}, ValueError, r"^`num_classes` must be at least 1; got 0"),
    ],
)
def test_bad_predictions_are_rejected(
    target: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        label_mapping(target, **options)


@pytest.mark.parametrize("images", [99, 100, 200])
@pytest.mark.parametrize(
    ("spread", "classes", "warned"),
    [(0.02, 2, True), (5.0, 2, False), (5.0, 1, True)],
    ids=["uniform outputs", "trained", "one class"],
)
def test_a_surrogate_that_looks_untrained_is_warned_of(
    spread: float, classes: int, warned: bool, images: int
) -> None:
    logits = np.zeros((images, 100), dtype=np.float32)
    logits[np.arange(images), np.arange(images) % classes] = 2 * spread
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        label_mapping(logits)
    assert [warning.category for warning in caught] == [UserWarning] * (warned and images >= 100)
    for warning in caught:
        assert re.match("the surrogate may be untrained.* vote for class 0", str(warning.message))
