"""The fractions of `keep="auto"` are judged by the accuracies of studies."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.votes import keeps as module
from benchmarks.votes.keeps import Task, rows, tasks_of
from tests.support.scores import scores_of

# Of 1,000 images in 20 classes, 20 % are not covered by the fraction 0.2, 10 % not by 0.3, 2 % not
# by 0.4.
COUNTS = np.array([200] * 4 + [50] * 2 + [40] * 2 + [10] * 2 + [0] * 10)


def task(study: str, lost: float, seeds: int = 8, **about: str) -> Task:
    """A task whose accuracy falls by `lost` for each uncovered image, with one mode."""
    scores = scores_of(COUNTS, COUNTS.astype(float), method="label_mapping")
    shares = {0.4: 0.02, 0.3: 0.1, 0.2: 0.2}
    return Task(
        about={"study": study, "target": "one", "method": "label_mapping", **about},
        step=0.0001,
        scores=dict.fromkeys(range(seeds), scores),
        differences={
            "linear_probe": {
                keep: dict.fromkeys(range(seeds), -lost * share) for keep, share in shares.items()
            }
        },
    )


def of(figure: str, found: list[Any], **about: str) -> list[Any]:
    return [
        row
        for row in found
        if row["figure"] == figure and all(row[name] == value for name, value in about.items())
    ]


def test_losses_stand_next_to_the_uncovered_share() -> None:
    found = list(rows([task("a", 0.1)]))
    losses = [(row["keep"], row["uncovered"], row["difference"]) for row in of("loss", found)]
    assert losses == [
        (0.2, pytest.approx(0.2), pytest.approx(-0.02)),
        (0.3, pytest.approx(0.1), pytest.approx(-0.01)),
        (0.4, pytest.approx(0.02), pytest.approx(-0.002)),
    ]
    (slope,) = of("slope", found)
    assert slope["slope"] == pytest.approx(0.1)


def test_a_study_is_judged_by_the_steepest_slope_of_the_others() -> None:
    tasks = [task("a", 0.05), task("b", 0.4), task("b", 0.1, target="two"), task("c", 0.1)]
    found = list(rows(tasks))
    least = {row["study"]: row["least_coverage"] for row in of("automatic", found)}
    assert least == {k: pytest.approx(v) for k, v in {"a": 0.975, "b": 0.9, "c": 0.975}.items()}
    # 6 classes cover 0.9, 8 cover 0.98, of which 0.971 is sure, and 10 cover all. Half of a class
    # is 0.025.
    (a,), (b, _) = of("automatic", found, study="a"), of("automatic", found, study="b")
    assert (a["keep"], b["keep"]) == ([0.48] * 3, [0.38] * 3)
    between = -0.05 * 0.02 * (1 - 0.48) / (1 - 0.4)  # to 0 at 1
    assert (a["difference"], a["verdict"]) == (pytest.approx(between), "no loss")
    between = -0.4 * (0.02 + 0.2 * 0.08)  # 0.38, between 0.3 and 0.4
    assert (b["difference"], b["verdict"]) == (pytest.approx(between), "loss")
    assert (a["best"], a["images"]) == (pytest.approx(0.3), 1000)


def test_what_is_pruned_is_summed_over_tasks_up_to_their_best_fractions() -> None:
    tasks = [task("a", 0.05), task("b", 0.2), task("c", 0.04), task("d", 0.2, seeds=3)]
    for each in tasks:
        each.differences["full_finetuning"] = {
            keep: dict.fromkeys(by_seed, 0.0)
            for keep, by_seed in each.differences["linear_probe"].items()
        }
    found = list(rows(tasks))
    automatic = {row["study"]: row for row in of("automatic", found, mode="linear_probe")}
    assert [row["verdict"] for row in automatic.values()] == ["no loss"] * 3 + ["cannot tell"]
    best = {"a": 0.3, "b": 0.4, "c": 0.2}
    for study, keep in best.items():
        assert automatic[study]["best"] == pytest.approx(keep)
    pruned = {study: 1 - automatic[study]["keep"][1] for study in best}
    ratio = sum(min(pruned[s], 1 - best[s]) for s in best) / sum(1 - keep for keep in best.values())
    saved = {row["mode"]: row for row in of("saved", found)}
    assert saved["linear_probe"]["ratio"] == saved["all"]["ratio"] == pytest.approx(ratio)
    assert saved["linear_probe"]["tasks"] == saved["all"]["tasks"] == 3
    assert saved["full_finetuning"]["ratio"] == pytest.approx(sum(pruned.values()) / 2.4)
    assert saved["all"]["verdicts"] == saved["each"]["verdicts"] == {"no loss": 6}
    each = ratio * sum(1 - keep for keep in best.values()) + sum(pruned.values())
    assert saved["each"]["ratio"] == pytest.approx(
        each / (sum(1 - keep for keep in best.values()) + 2.4)
    )
    assert saved["each"]["tasks"] == 6


@pytest.mark.filterwarnings("ignore:the surrogate hardly tells")
def test_everything_kept_is_no_verdict_of_the_sum() -> None:
    weak = task("a", 0.05)
    weak.scores.update({k: replace(v, label_information=0.1) for k, v in weak.scores.items()})
    found = list(rows([weak, task("b", 0.05)]))
    (saved,) = of("saved", found, mode="all")
    assert saved["verdicts"] == {"nothing pruned": 1, "no loss": 1}


@pytest.mark.filterwarnings("ignore:the surrogate hardly tells")
def test_votes_that_say_too_little_have_no_slope() -> None:
    weak = task("a", 0.5)
    weak.scores.update({k: replace(v, label_information=0.1) for k, v in weak.scores.items()})
    found = list(rows([weak, task("b", 0.2)]))
    assert [row["study"] for row in of("slope", found)] == ["b"]
    (a,) = of("automatic", found, study="a")
    assert (a["keep"], a["difference"]) == ([1, 1, 1], 0)
    assert a["label_information"] == pytest.approx([0.1] * 3)


def test_tasks_are_the_finished_runs_by_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(method: str, keep: Any, seed: int, **other: Any) -> Any:
        facts = {"target": "one", "scored_on": "one", "budget": "equal_epochs", **other}
        done = SimpleNamespace(result=lambda: facts.pop("result", {}))
        return SimpleNamespace(
            method=method, keep=keep, seed=seed, mode="linear_probe", finetuned=done, **facts
        )

    runs = [
        run("full", 1.0, 0),
        run("label_mapping", 0.4, 0),
        run("label_mapping", "auto", 0),
        run("random", 0.4, 0),
        run("label_mapping", 0.4, 0, budget="equal_steps"),
        run("label_mapping", 0.4, 0, scored_on="both"),
        run("label_mapping", 0.4, 1, result=None),
    ]
    accuracies = {"full": 0.9, 0.4: 0.85, "auto": 0.875}

    def rows_of(chosen: list[Any]) -> list[Any]:
        return [
            {
                "test_accuracy": accuracies[each.method if each.method == "full" else each.keep],
                "test_images": 200,
                "kept": 0.5 if each.keep == "auto" else each.keep,
            }
            for each in chosen
        ]

    monkeypatch.setattr(module, "read_study", lambda file: None)
    monkeypatch.setattr(module, "Plan", lambda *given: SimpleNamespace(runs=runs))
    monkeypatch.setattr(module, "rows_of", rows_of)
    monkeypatch.setattr(module, "_scores", lambda run: scores_of(COUNTS, COUNTS.astype(float)))
    (found,) = tasks_of(Path("pets.yaml"), Path("runs"))
    assert found.about == {"study": "pets", "target": "one", "method": "label_mapping"}
    assert found.differences == {"linear_probe": {0.4: {0: pytest.approx(-0.05)}}}
    assert found.step == 1 / 200
    (measured,) = of("measured", list(rows([found])))
    assert measured["keep"] == [0.5, 0.5, 0.5]
    assert measured["difference"] == pytest.approx(-0.025)
    assert measured["low"] is None


def test_fractions_below_all_measured_ones_are_not_judged() -> None:
    one = task("a", 0.05)
    assert one.between({0: 0.01, 1: 0.02}, "linear_probe") is None
    between = one.between({0: 0.01, 1: 1.0}, "linear_probe")
    assert between is not None
    assert (between.seeds, between.mean) == (1, 0.0)
