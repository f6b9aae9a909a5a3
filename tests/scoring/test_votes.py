"""Facts about the votes of a target, and the coverage of a target by a selection."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from dp4tl_ffcv import Features, Scores, combine_scores, feature_mapping, label_mapping
from dp4tl_ffcv.artifacts import save_artifact
from dp4tl_ffcv.scoring.votes import expected_coverage, label_information
from tests.support.scores import scores_of

CLASSES = 7


def voting(seed: int, images: int) -> Any:
    """Logits `(n, 7)` whose rows depend only on the predicted class."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(CLASSES, CLASSES)).astype(np.float32)
    rows[np.arange(CLASSES), np.arange(CLASSES)] = rows.max(axis=1) + 1
    return rows[rng.choice(CLASSES, images, p=rng.dirichlet(np.ones(CLASSES)))]


def covered_by_hand(targets: list[Any], rank: Any) -> list[float]:
    """Take back each image's vote, and count the images whose class is kept all the same."""
    smallest = np.ones(CLASSES)
    scores = [label_mapping(logits) for logits in targets]
    for place, logits in enumerate(targets):
        hits = np.zeros(CLASSES)
        for row in logits.astype(float):
            label, soft = row.argmax(), np.exp(row - row.max())
            without = (
                [one.scores.copy() for one in scores],
                [one.tie_break.copy() for one in scores],
            )
            without[0][place][label] -= 1
            without[1][place][label] -= soft[label] / soft.sum()
            ranking = rank([scores_of(*pair) for pair in zip(*without, strict=True)]).ranking()
            hits[ranking.tolist().index(label) :] += 1
        smallest = np.minimum(smallest, hits / len(logits))
    return smallest.tolist()


@drawn(st.integers(0, 10_000), st.integers(2, 15))
def test_coverage_is_that_of_images_whose_own_votes_do_not_count(seed: int, images: int) -> None:
    logits = voting(seed, images)
    scores = label_mapping(logits)
    expected = covered_by_hand([logits], lambda scores: scores[0])
    assert expected_coverage([scores]).tolist() == pytest.approx(expected)
    # Unknown soft votes of their own never raise it.
    unknown = label_mapping(logits.argmax(axis=1), soft_votes=scores.tie_break)
    assert (expected_coverage([unknown]) <= np.array(expected) + 1e-9).all()


@pytest.mark.parametrize("combine", ["sum", "max", "rank", "round-robin"])
def test_coverage_of_several_targets_is_the_smallest_in_their_common_ranking(combine: Any) -> None:
    targets = [voting(1, 12), voting(2, 9)]

    def rank(scores: Any) -> Scores:
        return combine_scores(scores, combine=combine)

    found = expected_coverage([label_mapping(target) for target in targets], rank)
    assert found.tolist() == pytest.approx(covered_by_hand(targets, rank))


def test_the_only_image_of_a_target_is_not_covered() -> None:
    many, one = scores_of([50, 50, 0], [50, 50, 0]), scores_of([0, 0, 1], [0, 0, 1])
    found = expected_coverage([many, one], lambda scores: combine_scores(scores, combine="sum"))
    assert found.tolist() == expected_coverage([one]).tolist() == [0, 0, 0]


def test_coverage_is_right_for_images_that_were_not_scored() -> None:
    rng = np.random.default_rng(0)
    popularity = rng.dirichlet(np.full(200, 0.3))
    logits = (np.log(popularity + 1e-4) + 2 * rng.gumbel(size=(20_000, 200))).astype(np.float32)
    scores = label_mapping(logits[:250])
    votes = np.bincount(logits[250:].argmax(axis=1), minlength=200)
    true = np.cumsum(votes[scores.ranking()]) / votes.sum()
    seen = np.cumsum(scores.scores[scores.ranking()]) / 250
    assert np.abs(seen - true).mean() > 0.1
    assert np.abs(expected_coverage([scores]) - true).mean() < 0.03  # 250 images: sqrt(0.25 / 250)


def test_classes_that_cannot_be_kept_leave_their_images_uncovered() -> None:
    scores = scores_of([4, 4, 2], [4, 4, 2])
    possible = np.array([True, False, True])
    assert expected_coverage([scores], among=possible).tolist() == [0.4, 0.6, 0.6]


def information_by_hand(ids: Any, labels: Any) -> float:
    """Compare each image with the others that have its vote, and with all others."""
    shares, chances = [], []
    for n, (vote, label) in enumerate(zip(ids, labels, strict=True)):
        others = np.arange(len(ids)) != n
        alike = others & (ids == vote)
        chances.append(np.mean(labels[others] == label))
        shares.append(np.mean(labels[alike] == label) if alike.any() else chances[-1])
    return float((np.mean(shares) - np.mean(chances)) / (1 - np.mean(chances)))


def test_information_is_how_far_other_images_with_a_vote_share_its_label(given: Path) -> None:
    target = Features.load(given / "target")
    labels, votes = target.labels, np.array(target.logits).argmax(axis=1)
    expected = information_by_hand(votes, labels)
    assert label_mapping(target).label_information == pytest.approx(expected)
    many = replace(target, labels=labels * 10**12)  # ids of labels need not be small
    assert label_mapping(many).label_information == pytest.approx(expected)
    # The votes of this feature mapping are the target's labels.
    centres = np.eye(10, 6 * 10, dtype=np.float32)
    exact = replace(Features.from_arrays(centres[labels], labels))
    assert feature_mapping(exact, centres).label_information == pytest.approx(1)
    for unknown in (np.full(len(labels), -1), np.zeros(len(labels), int)):
        assert label_mapping(replace(target, labels=unknown)).label_information is None
    assert label_mapping(target.logits).label_information is None


@pytest.mark.parametrize(
    ("images", "classes", "labels"), [(50, 20, 10), (100, 283, 10), (500, 1000, 10), (900, 5, 100)]
)
def test_votes_without_relation_to_the_labels_have_no_information(
    images: int, classes: int, labels: int
) -> None:
    rng = np.random.default_rng(0)
    found: list[Any] = [
        label_information(rng.integers(classes, size=images), rng.integers(labels, size=images))
        for _ in range(200)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    assert max(np.abs(found)) < 0.2


def labelled(images: int, votes: Any, classes: int = 20) -> Features:
    """Features whose logits vote with confidence, with four labels in turn."""
    logits = np.zeros((images, classes), np.float32)
    logits[np.arange(images), votes] = 8
    return replace(Features.from_arrays(logits, np.arange(images) % 4), logits=logits)


@pytest.mark.parametrize(
    ("images", "spread", "says"),
    [
        (100, lambda n: n % 4, None),
        (100, lambda n: 0 * n, "is 0.00 (0 by chance, 1 at best), and they go to 1.0 classes"),
        (108, lambda n: n % 3, "is 0.00 (0 by chance, 1 at best), and they go to 3.0 classes"),
        (500, lambda n: np.random.default_rng(0).integers(1000, size=len(n)), "tells the target"),
        (99, lambda n: 0 * n, None),  # too few images to tell
    ],
    ids=["one class per label", "one class", "without relation", "random", "few images"],
)
def test_votes_that_say_nothing_about_the_labels_are_warned_of(
    images: int, spread: Any, says: str | None
) -> None:
    target = labelled(images, spread(np.arange(images)), 1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        label_mapping(target)
        feature_mapping(target, np.eye(1000))
    assert [says is not None and says in str(each.message) for each in caught] == [True] * (
        2 * (says is not None)
    )
    assert {each.filename for each in caught} <= {__file__}


def test_shares_by_distance_need_not_agree_with_the_votes() -> None:
    means = 3 * np.random.default_rng(0).normal(size=(300, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        votes = feature_mapping(means[np.arange(100) % 20], means).votes
    assert votes is not None
    assert votes.agreement < 0.17


def test_the_summary_shows_what_the_votes_say() -> None:
    shown = label_mapping(labelled(8, np.arange(8) % 4)).summary()["votes"]
    confidence = np.exp(8) / (np.exp(8) + 19)
    assert shown == {
        "images": 8,
        "confidence": pytest.approx(confidence),
        "agreement": pytest.approx(confidence + 3 / (np.exp(8) + 19)),
        "effective_classes": pytest.approx(4),
        "label_information": pytest.approx(1),
        "coverage": {"0.1": 0.0, "0.2": 1.0, "0.4": 1.0, "0.6": 1.0, "0.8": 1.0},
    }
    assert "votes" not in scores_of([1.5, 2.5], [1, 3]).summary()
    assert "votes" not in scores_of([1, 2], [0, 0]).summary()
    assert "votes" not in scores_of([1, 2], [1, 2], unit="sample").summary()


def test_confidences_come_from_features_or_from_their_logits(given: Path) -> None:
    target = Features.load(given / "target")  # without confidences, as of an earlier version
    expected = label_mapping(target.logits).votes
    assert expected is not None
    for features in (target, replace(target, confidences=np.full(40, 0.5))):
        votes = label_mapping(features).votes
        assert votes is not None
        confidence = expected.confidence if features is target else 0.5
        assert votes.confidence == pytest.approx(confidence)
    unknown = label_mapping(replace(target, logits=None)).votes
    assert unknown is not None
    assert unknown.confidence is None


def test_files_keep_the_votes_and_older_files_have_them_without_confidence(tmp_path: Path) -> None:
    scores = label_mapping(labelled(60, np.arange(60) % 4))
    scores.save(tmp_path / "now.npz")
    assert Scores.load(tmp_path / "now.npz").summary() == scores.summary()
    arrays = {"scores": scores.scores, "tie_break": scores.tie_break}
    facts = {"method": "label_mapping", "unit": "class", "provenance": {}}
    save_artifact(tmp_path / "before.npz", "scores", arrays, facts)
    before = Scores.load(tmp_path / "before.npz").summary()["votes"]
    assert before.keys() == {"images", "agreement", "effective_classes", "coverage"}
    save_artifact(tmp_path / "bad.npz", "scores", arrays, {**facts, "own_votes": [1.0]})
    with pytest.raises(ValueError, match="`own_votes` must hold a number of at least 0 for each"):
        Scores.load(tmp_path / "bad.npz")
