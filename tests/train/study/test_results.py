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
            *(row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)),
            *(row("lm", "auto", 0.3 if seed % 2 else 0.5, seed, 0.92) for seed in range(8)),
            *(row("lm", 0.2, 0.2, seed, 0.901) for seed in range(8)),
        ]
    )
    auto, fixed = found
    assert (auto["keep"], auto["seeds"]) == ("auto", 8)
    assert auto["kept"] == pytest.approx(0.4)
    assert auto["speedup"] == pytest.approx(10 / 4)
    assert (auto["target"], auto["scored_on"]) == ("few", "both")
    assert prunings(found) == {("both", "few", "linear_probe", "equal_epochs", "lm"): 0.8}
    assert "auto 0.40" in table_of(found)
    assert "few of both" in table_of(found)
    assert fixed["keep"] == 0.2


def test_without_eight_seeds_a_table_says_that_nothing_is_shown() -> None:
    rows = [row(name, keep, keep, 0, 0.9) for name, keep in (("full", 1.0), ("lm", 0.2))]
    table = table_of(comparisons(rows))
    assert "A verdict needs 8 seeds." in table
    assert "lm: no pruning shown without loss" in table


def test_the_number_of_test_images_bounds_the_spread() -> None:
    rows = [
        row(name, keep, keep, seed, 0.9) | {"test_images": 100}
        for name, keep in (("full", 1.0), ("lm", 0.2))
        for seed in range(8)
    ]
    (found,) = comparisons(rows)
    assert found["low"] == pytest.approx(-0.00836, abs=1e-5)


@pytest.mark.parametrize("name", ["full", "lm"])
def test_a_run_counts_once(name: str) -> None:
    rows = [row("full", 1.0, 1.0, 0, 0.9), row("lm", 0.2, 0.2, 0, 0.9)]
    again = next(each for each in rows if each["method"] == name)
    with pytest.raises(ValueError, match=f"two rows have the same run: .*{name}"):
        comparisons([*rows, again])
