"""The tables of the pages match the kept result files."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import surrogates
from benchmarks.harness import tables
from benchmarks.harness.command import load_figures
from dp4tl_ffcv.atomic import lock_folder, unlock


def test_the_pages_show_the_kept_results() -> None:
    for page in tables.PAGES:
        assert tables.filled(page) == page.read_text()
    text = "".join(page.read_text() for page in tables.PAGES)
    for name in ("methods", "surrogates", "looks", *tables.COMPARISONS, *tables.END_TO_END):
        assert text.count(f"<!-- {name} table -->") == 1
    for results in tables.STUDIES.glob("*.jsonl"):
        assert tables.study_page(results) == results.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", tables.COMPARISONS)
def test_every_row_of_a_benchmark_is_in_its_table(name: str) -> None:
    path = tables.RESULTS / f"{name}.jsonl"
    head, *rows = (json.loads(line) for line in path.read_text().splitlines())
    table, figures = tables.comparison_table(name), tables.COMPARISONS[name].figures
    found = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(found) == len(rows)
    assert len(set(found)) == len(found)  # no two rows look the same
    assert set(figures) == {each for names in load_figures(name) for each in names}
    for row, line in zip(rows, found, strict=True):
        assert figures[row["figure"]] in line
    assert head["environment"]["cpu"] in table


def study_row(method: str, keep: Any, seed: int, accuracy: float, **other: Any) -> dict[str, Any]:
    kept = 0.3 if keep == "auto" else keep
    costs = ("surrogate", "features", "scoring", "select")
    return {
        "target": "few", "scored_on": "few", "method": method, "keep": keep, "kept": kept,
        "budget": "equal_epochs", "seed": seed, "mode": "linear_probe", "test_accuracy": accuracy,
        "classes": 10, "samples": 100, "steps": 1000 * kept, "images_per_second": 100.0 + 50 * seed,
        "pretrain_seconds": 10 * kept, "selection_seconds": 5.0,
        **{f"{name}_seconds": 1.0 for name in costs}, **other,
    }  # fmt: skip


def test_a_finished_study_is_kept_and_its_tables_show_every_comparison(tmp_path: Path) -> None:
    spread = {seed: 0.001 * (-1) ** seed for seed in range(8)}
    rows = [
        study_row(method, keep, seed, accuracy + (0 if method == "full" else spread[seed]), **other)
        for seed in spread
        for other in ({}, {"mode": "full_finetuning"})
        for method, keep, accuracy in [
            ("full", 1.0, 0.9), ("label_mapping", 0.5, 0.91), ("label_mapping", 0.2, 0.8),
            ("label_mapping", "auto", 0.9),
        ]
    ]  # fmt: skip
    run, kept = tmp_path / "small", tmp_path / "kept"
    run.mkdir()
    machine = {"cores": 3, "cpu": "a CPU", "gpu": "none", "torch": "2"}
    (run / "summary.json").write_text(json.dumps({"environment": machine, "runs": 65}))
    (run / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables.keep_study(run, kept, "Run in two parts.")
    page = tables.study_page(kept / "small.jsonl")
    assert page.startswith(
        "# small\n\n`dp4tl study benchmarks/studies/small.yaml`, on 3 cores of a CPU, GPU: none, "
    )
    assert "64 of 65 runs are finished" in page
    # 0.107 * t(0.975, 7) / sqrt(8) = 0.09. Missed: the lower end must be at -1 point or below, so
    # about 1 - 0.09 + 0.107 * t(0.8, 7) / sqrt(8) = 0.94.
    for mode in ("linear probe", "full finetuning"):
        section = page.split(f"## few, {mode}: difference to the full source\n\n")[1]
        assert section.split("\n\n")[0].splitlines()[2:] == [
            f"| equal epochs | {keep} | LM | 10 | 100 | {accuracy} | 90.00 | {difference} | 0.95 "
            f"| {verdict} | {speed} [{speed}, {speed}] | {cost} [{cost}, {cost}] | 8 |"
            for keep, accuracy, difference, verdict, speed, cost in [
                ("0.5", "91.00", "+1.00 [+0.91, +1.09]", "no loss", "2.00", "1.00"),
                ("auto 0.30", "90.00", "+0.00 [-0.09, +0.09]", "no loss", "3.33", "1.25"),
                ("0.2", "80.00", "-10.00 [-10.09, -9.91]", "loss", "5.00", "1.43"),
            ]
        ]
    assert "| LM | 50 % | 50 % |" in page
    assert (
        "| few | linear probe | LM | 0.30 | ? (?) | 70.00 | 0.5 | 50.00 | 1.00 | no loss |" in page
    )
    assert "- Run in two parts.\n- Times and speed-ups are by wall clock." in page
    assert "- Pretraining ran at 100 to 450 images/s" in page


def test_a_page_without_markers_is_rejected() -> None:
    with pytest.raises(ValueError, match="no markers"):
        tables.fill("# no table here", "methods", "table")


def test_the_table_of_surrogates_adds_the_cost_to_the_time_of_a_selection() -> None:
    row = {"method": "lm_16px", "processor_seconds": 10.0, "full_processor_seconds": 40.0}
    lines = [{"environment": {"cores": 2, "cpu": "a CPU"}}]
    lines += [
        {**row, "keep": keep, "seed": seed, "found": 10 - seed, "relevant": 10}
        for keep in (0.25, 0.125) for seed in (0, 1)
    ]  # fmt: skip
    shown = "| lm 16px | 25 % | 9.5 (10, 9) | 9.5 (10, 9) | 2.00 | 2.67 |"
    assert shown in surrogates.table(lines)


def test_surrogates_do_not_work_in_the_folder_of_a_study_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogates, "launcher_of", lambda *_: pytest.fail("a stage would start"))
    held = lock_folder(tmp_path, tmp_path)
    try:
        with pytest.raises(BlockingIOError):
            surrogates.main(surrogates.Config(out=tmp_path))
    finally:
        unlock(held)
