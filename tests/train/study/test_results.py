"""Rows and comparisons of a study."""

from typing import Any

import pytest

from train.components.study.results import COSTS, comparisons, prunings, table_of


def row(method: str, keep: Any, kept: float, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "target": "few", "scored_on": "both" if method != "full" else "few", "method": method,
        "keep": keep, "budget": "equal_epochs", "seed": seed, "mode": "linear_probe",
        "test_accuracy": accuracy, "kept": kept, "classes": 10, "samples": 100,
        "pretrain_seconds": 10 * kept, "selection_seconds": 1.0, **dict.fromkeys(COSTS, 0.25),
    }  # fmt: skip


def test_runs_of_keep_auto_are_one_group_whatever_they_chose() -> None:
    found = comparisons(
        [
            *(row("full", 1.0, 1.0, seed, 0.9) for seed in (0, 1)),
            row("lm", "auto", 0.3, 0, 0.92),
            row("lm", "auto", 0.5, 1, 0.92),
            row("lm", 0.2, 0.2, 0, 0.901),
            row("lm", 0.2, 0.2, 1, 0.901),
        ]
    )
    auto, fixed = found
    assert (auto["keep"], auto["seeds"]) == ("auto", 2)
    assert auto["kept"] == pytest.approx(0.4)
    assert auto["speedup"] == pytest.approx(20 / 8)
    assert (auto["target"], auto["scored_on"]) == ("few", "both")
    assert prunings(found) == {("both", "few", "linear_probe", "equal_epochs", "lm"): 0.8}
    assert "auto 0.40" in table_of(found)
    assert "few of both" in table_of(found)
    assert fixed["keep"] == 0.2
