"""`label_mapping` and `soft_label_mapping` against their definitions, image by image."""

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


# With few distinct logits, votes tie in every pattern. Soft votes tie if columns are equal.
@given(st.data())
def test_the_ranking_is_that_of_an_independent_sort_for_every_pattern_of_ties(data: Any) -> None:
    classes = data.draw(st.integers(2, 7))
    logits = data.draw(
        hnp.arrays(
            np.float32,
            st.tuples(st.integers(1, 8), st.just(classes)),
            elements=st.sampled_from([0.0, 1.0, 4.0]),
        )
    )
    copies = data.draw(st.lists(st.integers(0, classes - 1), min_size=classes, max_size=classes))
    logits = logits[:, copies]
    scores = label_mapping(logits)
    votes, soft = votes_by_hand(logits)
    np.testing.assert_allclose(scores.tie_break, soft, rtol=1e-12)
    alike = {c: min(o for o in range(classes) if copies[o] == copies[c]) for c in range(classes)}
    for c, first in alike.items():
        assert scores.tie_break[c] == scores.tie_break[first]  # equal columns tie to the bit
    assert scores.scores.tolist() == votes
    order = ranked(scores)
    assert scores.ranking().tolist() == order
    predictions = logits.argmax(axis=1)
    again = label_mapping(predictions, soft_votes=scores.tie_break)
    assert again.ranking().tolist() == order
    assert label_mapping(predictions, classes, soft_votes=scores.tie_break).scores.tolist() == votes


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_logits_of_every_precision_count_alike(dtype: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
    votes, soft = votes_by_hand(logits)
    scores = label_mapping(logits)
    assert scores.scores.tolist() == votes
    np.testing.assert_allclose(scores.tie_break, soft, rtol=1e-9)


def test_more_images_than_one_block_are_all_counted() -> None:
    logits = np.random.default_rng(0).normal(size=(9001, 3)).astype(np.float32)
    scores = label_mapping(torch.from_numpy(logits))
    assert scores.scores.sum() == 9001
    assert scores.tie_break.sum() == pytest.approx(9001)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0, np.nan]], r"^`target` must be finite; got NaN or inf"),
        ([[1, 2]], r"^`target` must be float logits"),
        ([1, 2], r"^`target` must be float soft votes \(C,\), .*got shape \(2,\) of int64"),
        ([], r"^`target` must be float soft votes"),
        (np.zeros((2, 2, 2)), r"^`target` must be float soft votes"),
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
        (np.zeros((2, 2, 2), int), {"num_classes": 2}, ValueError, r"must have shape \(N,\)"),
        ([0, 4], {"num_classes": 4}, ValueError, r"must lie in \[0, 4\); got values from 0 to 4"),
        ([-1, 1], {"num_classes": 4}, ValueError, r"must lie in \[0, 4\)"),
        ([], {"num_classes": 4}, ValueError, r"^`target` holds no image"),
        ([0.0, 1.0], {"num_classes": 4}, TypeError, r"must be integers; got dtype float64"),
        ([0], {"num_classes": 0}, ValueError, r"^`num_classes` must be at least 1; got 0"),
        ([0], {"num_classes": 2.5}, TypeError, r"^`num_classes` must be an int; got 2\.5"),
    ],
)
def test_bad_predictions_are_rejected(
    target: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        label_mapping(target, **options)
