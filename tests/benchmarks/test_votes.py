"""The benchmark of votes: its rows, on the features of a few images."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.votes.__main__ import KEEPS, Config, main


def test_predicted_and_true_coverage_of_each_method(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "votes.jsonl"
    main(
        Config(
            source=given / "source", targets=(given / "target",), images=(9, 30), draws=2, out=out
        )
    )
    head, *rows = map(json.loads, out.read_text().splitlines())
    assert head["bench"] == "votes"
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    shown: list[Any] = [(row["figure"], row["method"], row["images"]) for row in rows]
    assert shown == [
        ("votes", "label_mapping", 40),
        ("coverage", "label_mapping", 9),  # 30 is more than half of the images
        ("votes", "feature_mapping", 40),
        ("coverage", "feature_mapping", 9),
    ]
    for row in rows[1::2]:
        assert row["keep"] == list(KEEPS)
        for name in ("true", "predicted", "of_the_voters"):
            assert sorted(row[name]) == row[name]
            assert 0 <= row[name][0] <= row[name][-1] <= 1
        gaps = [abs(p - t) for p, t in zip(row["predicted"], row["true"], strict=True)]
        assert row["largest_error"] == pytest.approx(max(gaps), abs=1e-5)


def test_features_without_logits_are_rejected(given: Path) -> None:
    config = Config(source=given / "source", targets=(given / "target_no_outputs",))
    with pytest.raises(ValueError, match=r"has no logits\. Extract them with --logits"):
        main(config)
