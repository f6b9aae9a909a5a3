"""`dp4tl select`: every option means what the argument of `select` means."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Clusters, Selection, select
from dp4tl_ffcv.scoring import random_scores
from tests.cli.conftest import flags_of
from tests.conftest import Images
from tests.support.scores import scores_of


@pytest.fixture
def scored(photos: Images, given: Path, tmp_path: Path) -> Path:
    """A folder of scores of classes, samples and pseudo-classes."""
    digest = Clusters.load(given / "clusters.npz").digest()
    random_scores(photos.index, seed=1).save(tmp_path / "a.npz")
    random_scores(10, seed=2).save(tmp_path / "b.npz")
    random_scores(photos.index, seed=3, unit="sample").save(tmp_path / "samples.npz")
    scores_of([2, 3, 1, 0], clusters_sha256=digest).save(tmp_path / "pseudo.npz")
    for name, counts in (("votes", [60, 0, 40, 18]), ("more_votes", [0, 60, 2, 38])):
        votes = np.array([*counts, *[0] * 6])
        scores_of(votes, 0.9 * votes + 0.1 * votes.sum() / 10).save(tmp_path / f"{name}.npz")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("a", {"keep_bytes": "0.03MB"}),
        ("a", {"keep_classes": 4, "within": "samples.npz", "keep_within": 0.5}),
        ("samples", {"keep": 0.25, "balanced": True}),
        ("samples", {"keep": 0.5, "balanced": True, "clusters": "clusters.npz"}),
        ("samples", {"keep_samples": 7}),
        ("samples", {"min_score": 0.25}),
        ("pseudo", {"keep_classes": 2, "clusters": "clusters.npz"}),
        ("votes", {"keep": "auto"}),
        ("votes more_votes", {"keep": "auto", "combine": "rank"}),
        ("a b", {"keep": 0.3}),
        ("a b", {"keep": 0.3, "combine": "rank", "weights": (3.0, 1.0)}),
        ("a", {"keep": 0.3, "label_field": "label"}),
    ],
    ids=str,
)
def test_options_are_arguments(
    names: str,
    options: dict[str, Any],
    run: Callable[..., dict[str, Any]],
    scored: Path,
    given: Path,
    photos: Images,
) -> None:
    folders = {"clusters.npz": given, "samples.npz": scored}
    options = {
        name: folders[value] / value if value in folders else value
        for name, value in options.items()
    }
    files, out = [scored / f"{name}.npz" for name in names.split()], scored / "out.npz"
    result = run(
        "select", "--scores", *files, "--beton", photos.path, *flags_of(options), "--out", out
    )
    expected, found = select(files, photos.index, **options), Selection.load(out)
    assert found.digest() == expected.digest()
    assert found.provenance == expected.provenance
    assert result == {"out": str(out), **expected.summary(photos.path)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("a --keep 0.5 --keep-bytes 1GB", "exactly one"),
        ("a --keep-bytes much", "--keep-bytes"),
        ("a --keep auto", "--keep is 'auto', which needs votes"),
        ("pseudo --keep 0.5", "--clusters"),
        ("a,samples --keep 0.5", "class and sample"),
        ("a --keep 0.5 --weights 1 2", "--weights must hold"),
        ("a,nowhere --keep 0.5", "nowhere.npz"),
        ("a --keep 0.5 --clusters b.npz", "clusters file"),
        (" --keep 0.5", "empty"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, says: str, fail: Callable[..., str], photos: Images, scored: Path
) -> None:
    names, *words = arguments.split(" ")
    files = [scored / f"{name}.npz" for name in names.split(",") if name]
    options = [scored / word if word.endswith(".npz") else word for word in words]
    out = scored / "never.npz"
    line = fail("select", "--scores", *files, "--beton", photos.path, *options, "--out", out)
    assert says in line
    assert not out.exists()
