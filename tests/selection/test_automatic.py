"""`select(keep="auto")`: the smallest fraction whose coverage of the target is surely enough."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from dp4tl_ffcv import BetonIndex, Scores, Selection, combine_scores, label_mapping, select
from dp4tl_ffcv.scoring import random_scores
from dp4tl_ffcv.scoring.votes import expected_coverage
from tests.support.scores import clusters_of, scores_of

SHOWN = [percent / 100 for percent in range(20, 101, 10)]


def votes_of(counts: list[int], **facts: Any) -> Scores:
    """Votes and equal soft votes, so that without its own vote a class is behind all others."""
    return replace(scores_of(counts, np.array(counts, float), method="label_mapping"), **facts)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory, photos: Any) -> Any:
    """Pseudo-classes of the photos: 20 of 6 samples each."""
    return clusters_of(np.arange(120) % 20, np.zeros((20, 1)))


@pytest.mark.parametrize(
    ("counts", "keep"),  # half of a class of 20 is 0.025
    [
        ([100] * 4, 0.2),
        ([60, 40], 0.2),  # never less
        ([100] * 5, 0.23),
        ([100] * 8 + [31], 0.38),  # 3.7 % are not covered: surely at most 4.97 %
        ([100] * 8 + [32], 0.43),  # 3.9 %: surely at most 5.10 %
        ([100] * 8 + [1] * 12, 0.38),
        ([100] * 8 + [5] * 12, 0.98),
    ],
)
def test_the_smallest_fraction_that_surely_covers_95_percent_is_kept(
    counts: list[int], keep: float, photos: Any, twenty: Any
) -> None:
    scores = votes_of([*counts, *[0] * (20 - len(counts))])
    selection = select(scores, photos.index, keep="auto", clusters=twenty)
    assert selection.provenance["keep"] == keep
    expected = select(scores, photos.index, keep=keep, clusters=twenty)
    assert selection.digest() == expected.digest()
    evidence = selection.provenance["automatic"]
    covered = expected_coverage([scores])
    shown = sorted({*SHOWN, keep})
    assert evidence["coverage"] == {str(k): covered[int(20 * k + 0.5) - 1] for k in shown}
    assert evidence["least_coverage"] == 0.95
    bounds = {
        name: binomtest(round(share * sum(counts)), sum(counts), alternative="greater")
        .proportion_ci(0.95, method="wilson")
        .low
        for name, share in evidence["coverage"].items()
    }
    assert evidence["lower_bound"] == pytest.approx(bounds)
    assert evidence["confidence"] == 0.95
    summary = selection.summary()
    assert (summary["keep"], summary["automatic"]) == (keep, evidence)


def test_classes_without_samples_are_no_part_of_the_fraction(uneven: BetonIndex) -> None:
    present = np.flatnonzero(uneven.class_counts())
    counts = np.zeros(12, int)
    counts[present[:3]] = 50
    selection = select(votes_of(counts.tolist()), uneven, keep="auto")
    assert selection.classes.tolist() == present[:3].tolist()
    assert selection.provenance["keep"] == 0.28  # 2.5 of 9 classes


def test_every_one_of_several_targets_is_covered(photos: Any, twenty: Any, tmp_path: Path) -> None:
    one, other = [50] * 6 + [0] * 14, [0] * 14 + [0] + [30] * 5
    parts = [votes_of(one), votes_of(other)]
    selection = select(parts, photos.index, keep="auto", clusters=twenty)
    covered = expected_coverage(parts, lambda scores: combine_scores(scores))
    assert selection.provenance["keep"] == 0.53
    assert selection.provenance["automatic"]["coverage"]["0.5"] == covered[9] < 0.95
    selection.save(tmp_path / "auto.npz")
    assert Selection.load(tmp_path / "auto.npz").summary() == selection.summary()


def test_more_images_alike_never_keep_more(photos: Any, twenty: Any) -> None:
    shares = np.array([50, 30, 9, 7, 2, 2, *[0] * 14])  # 4 % are not covered by 0.2
    keeps = []
    for times in (1, 2, 4, 8, 100):
        scores = votes_of((shares * times).tolist())
        kept = select(scores, photos.index, keep="auto", clusters=twenty)
        keeps.append(kept.provenance["keep"])
    assert keeps == sorted(keeps, reverse=True)
    assert (keeps[0], keeps[-1]) == (0.28, 0.2)


@pytest.mark.parametrize("counts", [[3], [50, 49], [9] * 11])
def test_few_images_keep_everything(counts: list[int], photos: Any, twenty: Any) -> None:
    few = votes_of([*counts, *[0] * (20 - len(counts))])
    many = votes_of([450, 450, *[0] * 18])
    for scores in (few, [few, many]):
        with pytest.warns(
            UserWarning, match=rf"a target has {sum(counts)} images, and 100"
        ) as caught:
            selection = select(scores, photos.index, keep="auto", clusters=twenty)
        assert [each.filename for each in caught] == [__file__]
        assert selection.provenance["keep"] == 1
        (problem,) = selection.provenance["automatic"]["problems"]
        assert problem.startswith(f"a target has {sum(counts)} images")


def test_votes_that_say_little_keep_everything(photos: Any) -> None:
    scores = votes_of([100, *[0] * 9], label_information=0.39)
    with pytest.warns(UserWarning, match="label information of its votes is 0.39") as caught:
        selection = select(scores, photos.index, keep="auto")
    assert [each.filename for each in caught] == [__file__]
    assert selection.provenance["keep"] == 1
    assert selection.provenance["automatic"]["coverage"]["0.2"] == 1
    (problem,) = selection.provenance["automatic"]["problems"]
    assert problem.startswith("the surrogate hardly tells the target's classes apart")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = select(replace(scores, label_information=0.4), photos.index, keep="auto")
    assert good.provenance["keep"] == 0.2
    assert "problems" not in good.provenance["automatic"]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (random_scores(10), "hold random scores of each class. Give a fraction, such as 0.4"),
        (random_scores(120, unit="sample"), "hold random scores of each sample"),
        ([votes_of([5] * 10), random_scores(10)], "hold random scores"),
        (label_mapping([0, 1], num_classes=10), "hold label_mapping scores"),  # no soft votes
    ],
)
def test_scores_without_votes_are_rejected(scores: Any, says: str, photos: Any) -> None:
    with pytest.raises(ValueError, match=rf"^`keep` is 'auto', which needs votes.*{says}"):
        select(scores, photos.index, keep="auto")
    with pytest.raises(TypeError, match=r"^`keep` must be a fraction"):
        select(scores, photos.index, keep="most")  # type: ignore[arg-type]
