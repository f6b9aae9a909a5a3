"""The votes of targets for classes of ImageNet: the rows, and the page made from them."""

import json

import numpy as np
import pytest

from benchmarks import imagenet_names


def test_a_row_has_the_concentration_and_the_most_voted_classes() -> None:
    votes = np.zeros((2, 200), np.int64)
    votes[0, [3, 5]] = 6, 2
    votes[1, [5, 7, 9, 11, 13]] = 4, 1, 1, 1, 1
    names = [f"class {c}" for c in range(200)]
    row = imagenet_names.row("toys", votes, ("car", "doll"), names)
    assert (row["images"], row["classes"]) == (16, 6)
    shares = np.array([6, 6, 1, 1, 1, 1]) / 16
    assert row["effective_classes"] == pytest.approx(np.prod(shares**-shares))
    assert row["first"] == {"10": 1.0, "100": 1.0}
    assert row["votes"]["car"] == {"class 3": 6, "class 5": 2}
    assert list(row["votes"]["doll"].items())[:2] == [("class 5", 4), ("class 7", 1)]
    assert len(row["votes"]["doll"]) == 4
    assert row["images_by_class"] == {"car": 8, "doll": 8}


def test_the_page_shows_the_kept_results() -> None:
    text = imagenet_names.PAGE.read_text()
    assert text == imagenet_names.page()
    rows = [json.loads(line) for line in imagenet_names.RESULTS.read_text().splitlines()[1:]]
    for row in rows:
        assert f"## {row['target']}\n" in text
        for target, votes in row["votes"].items():
            name, count = next(iter(votes.items()))
            assert f"{name} {100 * count / row['images_by_class'][target]:.0f} %" in text
