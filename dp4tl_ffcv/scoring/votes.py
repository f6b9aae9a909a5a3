"""Votes of a target's images for source classes: how much they say, and what a selection covers."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .features.features import Features
    from .scores import Scores

FEWEST_IMAGES = 100
"""Number of images below which votes that make sense may look meaningless by chance."""
# By `python -m benchmarks.votes`, for 100 or more images. Label information: at most 0.13 for
# shuffled labels, 0.06 for images of an unfamiliar look, 0.26 for untrained networks, and 0.36 for
# clothes by a surrogate that knows characters; for digits by that surrogate, at least 0.4 in 98 %
# of the draws of 100 images, and at least 0.6 with 500.
LEAST_INFORMATION = 0.4
# Agreement of votes with soft votes by softmax: at most 0.05 for untrained networks, at least 0.56
# for trained ones.
_LEAST_AGREEMENT = 0.17
_SHOWN = (0.1, 0.2, 0.4, 0.6, 0.8)  # fractions kept whose coverage a summary has


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """One vote of each target image for a class, and its soft votes, which add up to 1."""

    counts: NDArray[np.float64]
    """Votes per class `(C,)`."""
    soft: NDArray[np.float64]
    """Soft votes per class `(C,)`."""
    own: NDArray[np.float64] | None
    """A class's soft votes from images that voted for it `(C,)`; None if unknown."""
    by_distance: bool
    """Whether soft votes are shares by distance, which need not agree with votes."""
    label_information: float | None
    """How far images that vote alike share labels, 0 by chance, at most 1; None if unknown."""

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @property
    def confidence(self) -> float | None:
        """Mean soft vote of an image for the class that it voted for; None if unknown."""
        return None if self.own is None else float(self.own.sum() / self.images)

    @property
    def agreement(self) -> float:
        """Fraction of votes and soft votes that are for the same classes; at least `confidence`."""
        return float(np.minimum(self.counts, self.soft).sum() / self.images)

    @property
    def effective_classes(self) -> float:
        """Number of classes that equal votes would spread over: exp of the votes' entropy."""
        return float(np.exp(_entropy(self.counts)))

    def summary(self, coverage: NDArray[np.float64]) -> dict[str, Any]:
        """Return the facts that are known, and the coverage at some fractions kept, JSON-able."""
        places = {keep: max(1, int(keep * len(coverage) + 0.5)) for keep in _SHOWN}
        facts: dict[str, Any] = {
            "images": self.images,
            "confidence": self.confidence,
            "agreement": self.agreement,
            "effective_classes": self.effective_classes,
            "label_information": self.label_information,
            "coverage": {str(keep): float(coverage[k - 1]) for keep, k in places.items()},
        }
        return {"votes": {name: fact for name, fact in facts.items() if fact is not None}}

    @property
    def problem(self) -> str | None:
        """Why the votes say too little about the target; None if they say enough."""
        if self.images < FEWEST_IMAGES or len(self.counts) < 2:
            return None
        most = self.counts.argmax()
        told = self.label_information
        if told is not None and told < LEAST_INFORMATION:
            return (
                "the surrogate hardly tells the target's classes apart: the label information of "
                f"its votes is {max(0, told):.2f} (0 by chance, 1 at best), and they go to "
                f"{self.effective_classes:.1f} classes in effect"
            )
        disagree = not self.by_distance and self.agreement < _LEAST_AGREEMENT
        if told is None and (disagree or self.counts[most] == self.images):
            return (
                "the surrogate may be untrained, or unfit for the target: "
                f"{self.counts[most] / self.images:.0%} of the {self.images} images vote for class "
                f"{most}, and votes and soft votes agree on {self.agreement:.0%}"
            )
        return None

    def warn(self, *, stacklevel: int) -> None:
        """Warn if there is a problem."""
        if (problem := self.problem) is not None:
            warnings.warn(
                f"{problem}. Selections by these scores may be no better than random. Check its "
                "checkpoint, or use a surrogate that was trained longer, or on images that look "
                "alike.",
                stacklevel=stacklevel + 1,
            )


def vote_matrix(features: "Features") -> NDArray[np.int64]:
    """Count the predictions of each source class among the images of each target class.

    `V[t, c] = |{n : labels[n] = t, predictions[n] = c}|`. The sum over t is the score of label
    mapping, if all images have labels.

    Args:
        features: the target's features, with predictions. Images without a label are left out.

    Returns:
        Counts `(T, C)`, for target classes up to the largest label.

    Raises:
        ValueError: the features have no predictions, or no image has a label.
    """
    classes = features.num_outputs
    if features.predictions is None or classes is None:
        raise ValueError("`features` have no predictions. Extract them with a classifier.")
    if (features.labels < 0).all():
        raise ValueError("No image has a label. Votes by target class need a labelled target.")
    return votes_by_label(features.predictions, features.labels, classes)


def votes_by_label(
    votes: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count the votes `(n,)` for each source class by the voter's label: `(T, num_classes)`.

    Images with the label -1 are left out.
    """
    known = labels >= 0
    rows = int(labels.max(initial=-1)) + 1
    pairs = labels[known] * num_classes + votes[known]
    return np.bincount(pairs, minlength=rows * num_classes).reshape(rows, num_classes)


def own_votes(
    ids: NDArray[Any], confidences: NDArray[np.float64] | None, num_classes: int
) -> tuple[float, ...]:
    """Return each class's soft votes from images that voted for it; empty if they are unknown."""
    if confidences is None:
        return ()
    return tuple(np.bincount(ids, confidences, minlength=num_classes).tolist())


def label_information(ids: NDArray[Any], labels: NDArray[Any] | None) -> float | None:
    """Return how far the other images with an image's vote share its label, beyond chance.

    The mean over images of `(share - chance) / (1 - chance)`. `share` is the fraction of the other
    images with the same vote that have the same label, or chance if there are none. `chance` is the
    probability that two different images have the same label. 1 if votes determine labels; 0 in
    expectation if they are independent, whatever the numbers of images, classes and labels. (The
    tau of Goodman and Kruskal 1954, with each image left out of what predicts its label.) Return
    None if there are no labels, or only one label.
    """
    if labels is None or labels.min() < 0 or labels.min() == labels.max():
        return None
    labels = np.unique(labels, return_inverse=True)[1]
    voters, known = np.bincount(ids), np.bincount(labels)
    pairs, together = np.unique(np.stack((ids, labels), axis=1), axis=0, return_counts=True)
    by_chance = (known - 1) / (len(ids) - 1)  # that another image has this label `(L,)`
    others = voters[pairs[:, 0]] - 1
    share = np.divide(together - 1, others, out=by_chance[pairs[:, 1]], where=others > 0)
    chance = known @ by_chance / len(ids)
    return float((together @ share / len(ids) - chance) / (1 - chance))


def _entropy(counts: NDArray[Any]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def expected_coverage(
    scores: "Sequence[Scores]",
    combine: "Callable[[Sequence[Scores]], Scores] | None" = None,
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Estimate the fraction of new target images whose class is among the K best `(C,)`.

    The images that were scored are covered better than new ones: each has raised its own class.
    Here each image is left out, the classes are ranked by the others, and the image counts as
    covered if its class is among the K best of that ranking. The only image of a target is not.

    Args:
        scores: scores by votes, one per target.
        combine: returns the scores to rank by, given those of all targets; None for one target.
        among: classes that can be selected `(C,)`; by default, all.

    Returns:
        Entry K - 1 is for the K best classes; with several targets, it is the smallest coverage.
    """
    size = len(scores[0])
    possible = np.ones(size, dtype=np.bool_) if among is None else among
    covered = np.ones(size)
    for place, one in enumerate(scores):
        votes = one.votes
        if votes is None:
            raise ValueError(f"{one!r} holds no votes.")
        # The largest that they can be, if unknown: the coverage is not overestimated.
        own = np.minimum(votes.counts, votes.soft) if votes.own is None else votes.own
        hits = np.zeros(size)
        for label in np.flatnonzero(votes.counts * possible):
            count = votes.counts[label]
            fewer, less = one.scores.copy(), one.tie_break.copy()
            fewer[label] -= 1
            if not fewer.any():
                continue
            less[label] = max(0.0, less[label] - own[label] / count)
            without = replace(one, scores=fewer, tie_break=less)
            ranked = (
                combine([*scores[:place], without, *scores[place + 1 :]]) if combine else without
            )
            hits[_better(ranked, label, possible)] += count
        np.minimum(covered, np.cumsum(hits) / votes.images, out=covered)
    return covered


def _better(scores: "Scores", label: np.int64, among: NDArray[np.bool_]) -> int:
    """Return the number of classes that rank before a class."""
    own, tie = scores.scores[label], scores.tie_break[label]
    ties = scores.scores == own
    before = scores.scores > own
    before |= ties & (scores.tie_break > tie)
    before[:label] |= (ties & (scores.tie_break == tie))[:label]
    return int((before & among).sum())
