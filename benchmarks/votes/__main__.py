"""Measure how well votes predict the coverage of images that did not vote, and what votes say.

    python -m benchmarks.votes --source features/source --targets features/mnist features/fashion

Some images of each target are drawn and scored by label mapping and feature mapping. The coverage
that their votes predict is compared with the fraction of the other images whose class is kept. The
fraction that `keep="auto"` keeps is enough if it covers 0.95 of the other images. A row per target
and method says what the votes of all images say. Label information is also that of shuffled labels.
Draws are scored without their labels: with them, `keep="auto"` keeps everything in the fraction
`of_weak_votes` of the draws.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import tyro

from benchmarks.harness.rows import Row, publish
from dp4tl_ffcv import Features, Scores, feature_mapping, label_mapping
from dp4tl_ffcv.kernels import nearest_mean
from dp4tl_ffcv.scoring.votes import LEAST_INFORMATION, expected_coverage, label_information
from dp4tl_ffcv.selection.automatic import LEAST_COVERAGE, automatic_keep
from dp4tl_ffcv.selection.budgets import part_of
from dp4tl_ffcv.utils import one_line_errors

Way = Callable[[Any], Scores]
KEEPS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    source: Path | None = None
    """Features of the source, by the targets' surrogate. Default: no feature mapping."""
    targets: tuple[Path, ...]
    """Features of targets with logits. The rows show the names of the folders."""
    images: tuple[int, ...] = (50, 100, 500, 2000)
    """Numbers of images that vote. Numbers above half of a target are left out."""
    draws: int = 200
    """Draws for each number of images. Ranges are from the smallest to the largest of them."""
    out: Path | None = None
    """File for the rows (.jsonl)."""


def rows_of(config: Config) -> Iterator[Row]:
    """Yield the rows of all targets."""
    source = None if config.source is None else Features.load(config.source)
    for folder in config.targets:
        target = Features.load(folder)
        if target.logits is None:
            raise ValueError(f"{str(folder)!r} has no logits. Extract them with --logits.")
        for whole, ids, way in _ways(target, source):
            about = {"target": folder.name, "method": whole.method}
            yield {"figure": "votes", **about, **_said(whole)}
            for images in config.images:
                if images <= len(target) / 2:
                    found = _predicted(way, ids, target.labels, images, config.draws)
                    yield {"figure": "coverage", **about, "images": images, **found}


def _ways(target: Features, source: Features | None) -> Iterator[tuple[Scores, Any, Way]]:
    """Yield the scores, the votes `(n,)` and the scores of drawn rows, for each method."""
    logits, features = np.array(target.logits), np.array(target.features)
    yield label_mapping(target), logits.argmax(axis=1), lambda rows: label_mapping(logits[rows])
    if source is not None:
        means = source.class_means(logits.shape[1])
        whole, ids = feature_mapping(target, source), nearest_mean(features, means)[0]
        yield whole, ids, lambda rows: feature_mapping(features[rows], means)


def _said(scores: Scores) -> Row:
    return {"classes": len(scores), **scores.summary()["votes"], "automatic_keep": _kept(scores)}


def _kept(scores: Scores) -> float:
    return automatic_keep([scores])[0]


def _predicted(way: Way, ids: Any, labels: Any, images: int, draws: int) -> Row:
    """Return three coverages for each fraction kept, their gap, and facts of the draws."""
    rng, columns, kept, enough, told, shuffled = np.random.default_rng(0), [], [], [], [], []
    for _ in range(draws):
        order = rng.permutation(len(ids))
        drawn = order[:images]
        scores = way(drawn)
        ranking = scores.ranking()
        true = np.bincount(ids[order[images:]], minlength=len(scores))[ranking]
        true = np.cumsum(true) / true.sum()
        places = [int(part_of(keep, len(scores))) - 1 for keep in KEEPS]
        seen = np.cumsum(scores.scores[ranking]) / images
        columns.append([each[places] for each in (true, expected_coverage([scores]), seen)])
        kept.append(_kept(scores))
        enough.append(true[part_of(kept[-1], len(scores)) - 1] >= LEAST_COVERAGE)
        told.append(label_information(ids[drawn], labels[drawn]) or 0.0)
        shuffled.append(label_information(ids[drawn], rng.permutation(labels[drawn])) or 0.0)
    true, expected, seen = np.mean(columns, axis=0)
    return {
        "keep": KEEPS,
        "true": true.tolist(),
        "predicted": expected.tolist(),
        "of_the_voters": seen.tolist(),
        "largest_error": float(np.abs(expected - true).max()),
        "automatic_keep": [min(kept), float(np.mean(kept)), max(kept)],
        "automatic_keep_is_enough": float(np.mean(enough)),
        "of_weak_votes": float(np.mean(np.array(told) < LEAST_INFORMATION)),
        "label_information": [min(told), max(told)],
        "of_shuffled_labels": [min(shuffled), max(shuffled)],
    }


def main(config: Config) -> None:
    """Measure and publish."""
    params = {"images": config.images, "draws": config.draws}
    with catch_warnings():
        simplefilter("ignore")  # the rows say what the warnings say
        publish(rows_of(config), "votes", (), config.out, params=params)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors(config):
        main(config)
