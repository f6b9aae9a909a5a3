"""Comparisons with the full source, with random classes, and of keep `auto`."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from dp4tl_ffcv.report.findings import Findings
from dp4tl_ffcv.report.names import COSTS
from dp4tl_ffcv.report.tables import as_text, standing_table, tables_of
from dp4tl_ffcv.report.words import notes_of, summarise


def row(method: str, keep: Any, kept: float, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "target": "few", "scored_on": "both" if method != "full" else "few", "method": method,
        "keep": keep, "budget": "equal_epochs", "seed": seed, "mode": "linear_probe",
        "test_accuracy": accuracy, "kept": kept, "classes": 10, "samples": 100,
        "steps": 1000 * kept, "pretrain_seconds": 10 * kept, "selection_seconds": 1.0,
        **dict.fromkeys(COSTS, 0.25),
    }  # fmt: skip


def shown(rows: list[dict[str, Any]]) -> str:
    return "\n".join(map(as_text, tables_of(Findings(rows))))


def test_runs_of_keep_auto_are_one_group_whatever_they_chose() -> None:
    rows = [
        *(row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)),
        *(row("lm", "auto", 0.3 if seed % 2 else 0.5, seed, 0.92) for seed in range(8)),
        *(row("lm", 0.2, 0.2, seed, 0.901) for seed in range(8)),
    ]
    found = Findings(rows)
    auto, fixed = found.comparisons
    assert (auto["keep"], auto["seeds"]) == ("auto", 8)
    assert auto["kept"] == pytest.approx(0.4)
    assert auto["speedup"] == pytest.approx(10 / 4)
    assert (auto["target"], auto["scored_on"]) == ("few", "both")
    rule = {name: auto[name] for name in ("scored_on", "target", "mode", "budget", "method")}
    assert found.prunings == [{**rule, "pruned": 0.8}]
    assert fixed["keep"] == 0.2
    assert "auto 0.40" in shown(rows)
    assert "few of both: largest pruning without loss" in shown(rows)


def test_the_regret_of_auto_is_measured_against_the_largest_pruning_without_loss() -> None:
    accuracies = {0.6: 0.9, 0.4: 0.9, 0.2: 0.8, 0.1: 0.9}  # 0.1 does not count after 0.2
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    for seed in range(8):
        rows += [row("lm", keep, keep, seed, each) for keep, each in accuracies.items()]
        evidence = {"coverage": 0.98, "lower_bound": 0.97 + 0.001 * seed}
        rows.append(row("lm", "auto", 0.5, seed, 0.9) | evidence)
    steps = [each | {"budget": "equal_steps"} for each in rows]
    (found,) = Findings(rows + steps).regrets
    assert found["best_keep"] == 0.4
    assert [found["saved"], found["saved_best"]] == pytest.approx([0.5, 0.6])
    assert found["ratio"] == pytest.approx(0.5 / 0.6)
    assert (found["kept"], found["verdict"]) == (0.5, "no loss")
    assert [found["coverage"], found["lower_bound"]] == pytest.approx([0.98, 0.9735])


def test_auto_earns_nothing_by_a_loss_or_by_pruning_more_than_the_best_fraction() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    for seed in range(8):
        rows += [row("lm", 0.4, 0.4, seed, 0.9), row("lm", "auto", 0.7, seed, 0.9)]
        rows += [row("fm", 0.8, 0.8, seed, 0.9), row("fm", "auto", 0.1, seed, 0.9)]
        rows += [row("aum", 0.4, 0.4, seed, 0.9), row("aum", "auto", 0.1, seed, 0.5)]
        rows += [row("similarity", 0.8, 0.8, seed, 0.8), row("similarity", "auto", 0.1, seed, 0.5)]
        unsure = 0.85 + 0.1 * (seed % 2)
        rows += [row("el2n", 0.8, 0.8, seed, 0.8), row("el2n", "auto", 0.5, seed, unsure)]
    ratio = (0.3 + 0.2) / (0.6 + 0.2 + 0.6)
    verdicts = "of 5 comparisons of auto, 2 show no loss, 2 show a loss, 1 cannot tell"
    assert f"a ratio of {ratio:.2f}; {verdicts}" in shown(rows)
    by_method = {each["method"]: each["ratio"] for each in Findings(rows).regrets}
    expected = {"lm": pytest.approx(0.5), "fm": 1, "aum": 0, "similarity": None, "el2n": None}
    assert by_method == expected


def test_runs_that_prune_nothing_do_not_count() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    for seed in range(8):
        rows += [row("lm", 0.4, 0.4, seed, 0.8), row("lm", "auto", 1.0, seed, 0.9)]
        rows.append(row("longer", 1.0, 1.0, seed, 0.91))
    found = Findings(rows)
    assert {each["method"] for each in found.prunings} == {"lm"}
    assert [each["verdict"] for each in found.regrets] == ["nothing pruned"]
    text = " ".join((shown(rows), *summarise(found, 32)))
    assert "of 1 comparison of auto, 0 show no loss, 0 show a loss, 0 cannot tell, 1 prunes" in text
    assert "on selections by lm with 8 seeds" in text
    assert "Of 1 comparison, 0 show no loss, 1 show a loss" in text
    assert "longer" in text  # its accuracies are shown


def test_all_warnings_of_a_seed_are_shown_once() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(2)]
    for keep in (0.5, 0.25):
        rows += [row("lm", keep, keep, seed, 0.9) for seed in range(2)]
    rows[3]["warnings"] = ["Votes say little.", "Few images."]
    rows[5]["warnings"] = ["Votes say little."]
    assert Findings(rows).warnings == [("both", "lm", 1, 2, "Votes say little. Few images.")]


def test_the_control_prunes_classes_at_random() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    for seed in range(8):
        rows.append(row("longer", 1.0, 1.0, seed, 0.9) | {"random": "class"})
        rows.append(row("drawn", 0.5, 0.5, seed, 0.8) | {"random": "class"})
        rows.append(row("lm", 0.5, 0.5, seed, 0.9))
    found = Findings(rows)
    assert found.control == "drawn"
    assert found.comparisons[-1]["ahead"] == pytest.approx(0.1)


def test_a_full_source_that_is_trained_too_little_is_named() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    rows += [row("longer", 1.0, 1.0, seed, 0.93) for seed in range(8)]
    rows += [row("a_bit_longer", 1.0, 1.0, seed, 0.905) for seed in range(8)]
    rows += [row("lm", 0.5, 0.5, seed, 0.95) for seed in range(8)]
    notes = " ".join(notes_of(Findings([each | {"images_per_second": 1.0} for each in rows])))
    assert "Longer, without pruning, gains 3.0 points (few of both, linear probe, " in notes
    assert notes.count("without pruning") == 1


def test_seeds_that_share_a_selection_are_named() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    for seed in range(8):
        rows.append(row("lm", 0.5, 0.5, seed, 0.9) | {"selection": "selection/one"})
        rows.append(row("fm", 0.5, 0.5, seed, 0.9) | {"selection": f"selection/{seed}"})
    rows = [each | {"images_per_second": 1.0} for each in rows]
    assert Findings(rows).shared == ["lm"]
    assert "The seeds of lm share one selection" in " ".join(notes_of(Findings(rows)))


def test_busy_machines_give_no_speed_ups_in_the_summary() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    rows += [row("lm", 0.4, 0.4, seed, 0.9) for seed in range(8)]
    for clock, shown_gain in (("processor", "2.5 times as fast"), ("wall", "0.40 of the steps")):
        made = [
            each | {"clock": clock, "images_per_second": 100.0 + 50 * (number % 2)}
            for number, each in enumerate(rows)
        ]
        assert shown_gain in " ".join(summarise(Findings(made), 16))


def test_the_standing_has_a_line_for_each_method_and_place() -> None:
    rows = [row("full", 1.0, 1.0, seed, 0.9) for seed in range(8)]
    rows += [row("lm", "auto", 0.3, seed, 0.9) for seed in range(8)]
    rows += [row("lm", 0.2, 0.2, seed, 0.8) for seed in range(8)]
    rows += [row("lm", 0.5, 0.5, seed, 0.91) for seed in range(8)]
    rows += [row("fm", 0.2, 0.2, seed, 0.89) for seed in range(3)]
    table = standing_table(Findings(rows))
    assert table.columns[3:] == ["method", "seeds", "0.5", "0.2", "auto"]
    assert table.rows == [
        ["few of both", "linear probe", "equal epochs", *cells]
        for cells in (
            ["lm", "8", "+1.00 no loss", "-10.00 loss", "+0.00 no loss"],
            ["fm", "3", "", "-1.00 ?", ""],
        )
    ]


def test_auto_has_no_ratio_if_no_fraction_is_without_loss() -> None:
    rows = []
    for seed in range(8):
        rows.append(row("full", 1.0, 1.0, seed, 0.9))
        rows.append(row("lm", 0.5, 0.5, seed, 0.8))
        rows.append(row("lm", "auto", 0.3, seed, 0.8))
    (found,) = Findings(rows).regrets
    assert (found["saved_best"], found["best_keep"], found["ratio"]) == (0, None, None)
    assert (found["coverage"], found["lower_bound"]) == (None, None)  # unknown in old rows
    text = shown(rows)
    assert "saves 70 % of the training steps on average" in text
    assert "afterwards 0 %; of 1 comparison of auto, 0 show no loss, 1 show a loss" in text
    line = "few of both linear probe lm 0.30 ? (?) 70.00 none 0.00 none loss"
    assert line in [" ".join(each.split()) for each in text.splitlines()]


def test_points_ahead_are_paired_with_the_random_classes_of_the_same_run() -> None:
    accuracies = iter(np.random.default_rng(0).uniform(0.3, 0.9, 100))
    gains = [0.01, 0.03, 0.02, 0.05]
    rows = []
    for seed, gain in enumerate(gains):
        for mode in ("linear_probe", "full_finetuning"):
            for budget in ("equal_epochs", "equal_steps"):
                place = {"mode": mode, "budget": budget, "test_images": 1000}
                full = row("full", 1.0, 1.0, seed, 0.9) | {"scored_on": "few"}
                rows.append(full | place)
                for keep in (0.4, 0.2):
                    accuracy = next(accuracies)
                    for method, points, unit in (
                        ("lm", gain, None), ("samples", -gain, "sample"),
                        ("drawn", 0.0, "class"), ("drawn again", -gain, "class"),
                    ):  # fmt: skip
                        each = row(method, keep, keep, seed, accuracy + points) | place
                        rows.append(each if unit is None else each | {"random": unit})
    found = Findings(rows)
    assert found.control == "drawn"
    expected = ttest_1samp(gains, 0).confidence_interval(0.95)
    for each in found.comparisons:
        ends = [each["ahead"], each["ahead_low"], each["ahead_high"]]
        if each["method"] == "drawn":
            assert ends == [None] * 3
        elif each["method"] == "lm":
            assert ends == pytest.approx([np.mean(gains), expected.low, expected.high])
            assert each["ahead_seeds"] == 4
        else:
            assert ends == pytest.approx([-np.mean(gains), -expected.high, -expected.low])
    cell = f"+2.75 [{100 * expected.low:+.2f}, {100 * expected.high:+.2f}]"
    line = f"0.4 lm {' '.join([cell] * 4)}"
    assert line in [" ".join(each.split()) for each in shown(rows).splitlines()]


def test_a_study_without_random_classes_has_no_control() -> None:
    rows = [row(name, keep, keep, 0, 0.9) for name, keep in (("full", 1.0), ("lm", 0.2))]
    rows.append(row("drawn", 0.2, 0.2, 0, 0.9) | {"random": "sample"})
    assert Findings(rows).control is None
    assert "ahead" not in shown(rows)
    old = [*rows[:2], row("random", 0.2, 0.2, 0, 0.8)]  # without the unit, as versions before wrote
    assert Findings(old).control == "random"


def test_without_eight_seeds_nothing_is_shown() -> None:
    rows = [row(name, keep, keep, 0, 0.9) for name, keep in (("full", 1.0), ("lm", 0.2))]
    (found,) = Findings(rows).comparisons
    assert (found["verdict"], found["low"], found["speedup_low"]) == ("cannot tell", None, None)
    assert Findings(rows).prunings[0]["pruned"] == 0


def test_the_number_of_test_images_bounds_the_spread() -> None:
    rows = [
        row(name, keep, keep, seed, 0.9) | {"test_images": 100}
        for name, keep in (("full", 1.0), ("lm", 0.2))
        for seed in range(8)
    ]
    (found,) = Findings(rows).comparisons
    assert found["low"] == pytest.approx(-0.00836, abs=1e-5)


@pytest.mark.parametrize("name", ["full", "lm"])
def test_a_run_counts_once(name: str) -> None:
    rows = [row("full", 1.0, 1.0, 0, 0.9), row("lm", 0.2, 0.2, 0, 0.9)]
    again = next(each for each in rows if each["method"] == name)
    with pytest.raises(ValueError, match=f"two rows have the same run: .*{name}"):
        Findings([*rows, again])


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
    found = Findings([*full, *reversed(pruned)]).comparisons
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
    (found,) = Findings(rows).comparisons
    for name, seconds in (("speedup", pruned), ("speedup_with_selection", np.add(pruned, 1.0))):
        interval = ttest_rel(np.log(full), np.log(seconds)).confidence_interval(0.95)
        width = (interval.high - interval.low) / 2
        ratio = sum(full) / sum(seconds)
        ends = [found[name], found[f"{name}_low"], found[f"{name}_high"]]
        assert ends == pytest.approx([ratio, ratio * np.exp(-width), ratio * np.exp(width)])
