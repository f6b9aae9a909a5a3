"""Rows and comparisons of a study."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from train.components.study import results as module
from train.components.study.results import COSTS, comparisons, prunings, rows_of, table_of


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


def test_a_run_is_compared_with_the_full_run_of_its_seed_mode_and_budget() -> None:
    accuracies = iter(np.random.default_rng(0).uniform(0.3, 0.9, 16))
    places = [
        (seed, mode, budget)
        for seed in range(4)
        for mode in ("linear_probe", "full_finetuning")
        for budget in ("equal_epochs", "equal_steps")
    ]
    full = [
        row("full", 1.0, 1.0, seed, next(accuracies)) | {"mode": mode, "budget": budget}
        for seed, mode, budget in places
    ]
    pruned = [
        each | {"method": "lm", "keep": 0.5, "scored_on": "both",
                "test_accuracy": each["test_accuracy"] - 0.02}
        for each in full
    ]  # fmt: skip
    found = comparisons([*full, *reversed(pruned)])
    assert len(found) == 4
    for each in found:
        assert [each["mean"], each["low"], each["high"]] == pytest.approx([-0.02] * 3)
        mine = [r for r in full if (r["mode"], r["budget"]) == (each["mode"], each["budget"])]
        values = [r["test_accuracy"] for r in mine]
        width = 3.182446 * np.std(values, ddof=1) / 2  # t(0.975, 3)
        assert each["full_accuracy_low"] == pytest.approx(np.mean(values) - width, rel=1e-6)
        assert each["full_accuracy_high"] == pytest.approx(np.mean(values) + width, rel=1e-6)


def test_a_speedup_has_the_interval_of_paired_ratios() -> None:
    full, pruned = [10.0, 14.0, 11.0, 17.0], [2.0, 3.5, 2.5, 3.0]
    rows = []
    for seed in range(4):
        rows.append(row("full", 1.0, 1.0, seed, 0.9) | {"pretrain_seconds": full[seed]})
        rows.append(row("lm", 0.5, 0.5, seed, 0.9) | {"pretrain_seconds": pruned[seed]})
    (found,) = comparisons(rows)
    for name, seconds in (("speedup", pruned), ("speedup_with_selection", np.add(pruned, 1.0))):
        interval = ttest_rel(np.log(full), np.log(seconds)).confidence_interval(0.95)
        width = (interval.high - interval.low) / 2
        ratio = sum(full) / sum(seconds)
        ends = [found[name], found[f"{name}_low"], found[f"{name}_high"]]
        assert ends == pytest.approx([ratio, ratio * np.exp(-width), ratio * np.exp(width)])


class FakeStage:
    """A finished stage."""

    def __init__(self, kind: str, needs: dict[str, Any], **result: Any) -> None:
        self.kind, self.key, self.needs = kind, f"{id(self)}", needs
        self.paths = {"test": "test.beton"}
        self._result = {"seconds": 9.0, "compile_seconds": 1.0, **result}

    def result(self) -> dict[str, Any]:
        return self._result


@pytest.mark.parametrize(
    ("change", "clock", "seconds", "cost"),
    [
        ({}, "processor", 5.0, 3.0),
        ({"environment": {"gpu": "a GPU"}}, "wall", 7.0, 8.0),
        ({"pretrain_seconds": 11.0}, "wall", 11.0, 8.0),  # continued after a stop
    ],
)
def test_times_are_processor_time_on_a_cpu(
    change: dict[str, Any],
    clock: str,
    seconds: float,
    cost: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.BetonIndex, "open", lambda _: range(10))
    selection = FakeStage("selection", {}, processor_seconds=3.0, keep=0.5)
    trained = FakeStage(
        "pretrain", {"selection": selection}, **{
            "processor_seconds": 5.0, "pretrain_seconds": 7.0, "environment": {"gpu": "none"},
            "retained_classes": 1, "retained_samples": 1, "steps": 1, "images_per_second": 1.0,
            **change,
        },
    )  # fmt: skip
    tuned = FakeStage("finetune", {"pretrained": trained}, test_accuracy=0.5)
    run: Any = SimpleNamespace(
        about={"seed": 0}, keep=0.5, selection=selection, pretrained=trained, finetuned=tuned
    )
    (found,) = rows_of([run])
    assert (found["clock"], found["pretrain_seconds"]) == (clock, seconds)
    assert found["selection_seconds"] == found["select_seconds"] == cost
