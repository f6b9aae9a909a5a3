"""A whole study, small: run, killed, continued, and its results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import Scores, Selection, build_model, image_fields, save_checkpoint, write_beton
from dp4tl_ffcv.report.names import COSTS
from dp4tl_ffcv.scoring import aum
from tests.support.dynamics import dynamics_of
from tests.support.images import picture
from train.components.study import work
from train.components.study.stages import Stage
from train.configs.study import Config
from train.study import study

FILE = """
source: source_{split}.beton
targets: {target: "target_{split}.beton"}
methods: {label_mapping: {}, random: {unit: class}}
keeps: [0.5]
seeds: 2
images: {resolution: 32, crop_ratio: 1.0, flip: false}
pretrain: {arch: resnet8_w16, epochs: 2, batch_size: 16, lr: 0.1}
surrogates: {default: {epochs: 1}}
finetune:
  linear_probe: {epochs: 2, batch_size: 8}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six source classes and two target classes."""
    folder = tmp_path_factory.mktemp("study")
    for name, classes, splits in (
        ("source", 6, {"train": 48, "val": 12}),
        ("target", 2, {"train": 16, "val": 8, "test": 8}),
        ("other", 3, {"train": 9, "val": 6, "test": 6}),
    ):
        for place, (split, count) in enumerate(splits.items()):
            samples = [
                (picture(32, 32, seed=n % classes + 100 * place), n % classes, n)
                for n in range(count)
            ]
            fields = image_fields(mode="raw")
            write_beton(folder / f"{name}_{split}.beton", samples, fields, num_workers=0)
    (folder / "small.yaml").write_text(FILE)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def finished(file: Path) -> tuple[Path, list[dict[str, Any]]]:
    out = file.parent / "out"
    return out, study(Config(file=file, out=out, jobs=1))


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a study without times."""
    lines = (out / "results.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def test_each_run_has_a_row_and_each_selection_a_comparison(
    finished: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, compared = finished
    found = rows(out)
    assert len(found) == 2 * 2 * 3  # seeds, budgets, full and two methods
    assert {row["classes"] for row in found if row["method"] != "full"} == {3}
    steps = {(row["method"] == "full", row["budget"]): row["steps"] for row in found}
    assert steps == {
        (True, "equal_epochs"): 6, (True, "equal_steps"): 6,
        (False, "equal_epochs"): 2, (False, "equal_steps"): 6,
    }  # fmt: skip
    assert len(compared) == 2 * 2
    for row in compared:
        mine = [r for r in found if all(r[k] == row[k] for k in ("method", "budget", "keep"))]
        full = [r for r in found if r["method"] == "full" and r["budget"] == row["budget"]]
        mean = np.mean([r["test_accuracy"] for r in mine]) - np.mean(
            [r["test_accuracy"] for r in full]
        )
        assert row["mean"] == pytest.approx(mean)
        assert row["seeds"] == 2
    assert (out / "results.csv").read_text().count("\n") == len(found) + 1


def test_rows_name_the_files_and_the_costs_of_their_selection(
    finished: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, compared = finished
    lines = (out / "results.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        costs = [row[name] for name in COSTS]
        assert row["selection_seconds"] == pytest.approx(sum(costs))
        if row["method"] == "full":
            assert row["selection"] is row["scores"] is None
            assert not any(costs)
        else:
            assert len(Selection.load(out / row["selection"] / "selection.npz").classes) == 3
            assert Scores.load(out / row["scores"] / "scores.npz").method == row["method"]
            has_surrogate = row["method"] == "label_mapping"
            assert [cost > 0 for cost in costs] == [has_surrogate, has_surrogate, True, True]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["runs"] == len(lines)
    assert summary["stages"]["finetune"] == {"finished": 2 * 5}
    assert len(summary["comparisons"]) == len(compared)


def test_a_study_has_a_report(finished: tuple[Path, list[dict[str, Any]]], file: Path) -> None:
    out, _ = finished
    page = (out / "report.html").read_text()
    assert f"dp4tl study {file} --out {out}" in page
    for words in ("all 12 runs are finished", "Learning curves", "Classes by LM", "source train"):
        assert words in page
    assert page.count("data:image") == 1


def test_a_finished_study_repeats_nothing(
    finished: tuple[Path, list[dict[str, Any]]], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, compared = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert study(Config(file=file, out=out, jobs=1)) == compared
    stages = {path for path in before if path.parent != out}
    assert all(path.stat().st_mtime_ns == before[path] for path in stages)
    capsys.readouterr()
    study(Config(file=file, out=out, status=True))
    assert "not finished" not in capsys.readouterr().out


def test_a_dry_run_shows_every_run_and_writes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(Config(file=file, out=tmp_path / "new", dry_run=True))
    shown = capsys.readouterr().out
    lines = {line.partition("  pretrain ")[2]: line.split() for line in shown.splitlines()}
    # Two seeds, each with a finetuning run unless it is a surrogate.
    runs = {"full": 4, "surrogate default": 2}
    for method in ("label_mapping for target", "random"):
        for budget in ("equal_epochs", "equal_steps"):
            runs[f"{method}, keep 0.5, {budget}"] = 4
    assert {name: int(words[1]) for name, words in lines.items() if name} == runs
    assert all(words[3] == "s" and words[5] == "MB" for name, words in lines.items() if name)
    assert "32 stages are left: " in shown.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_dry_run_does_not_guess_the_size_of_data_that_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILE.replace("source_", "digits/source_").replace('"target_', '"digits/target_')
    (tmp_path / "new.yaml").write_text(f"data: {{digits: [digits]}}\n{text}")
    study(Config(file=tmp_path / "new.yaml", dry_run=True))
    shown = capsys.readouterr().out
    assert shown.count("unknown") == 6 + 1 + 3 + 1  # runs, features, kinds and the sum
    assert "`--only write`" in shown.splitlines()[-1]
    assert "0 s" not in shown


def test_stages_are_chosen_by_their_names(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = Config(file=file, out=tmp_path, only="surrogate default, seed 1", status=True)
    study(chosen)
    assert capsys.readouterr().out.split() == [
        "features", "not", "finished", "1", "pretrain", "not", "finished", "1",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no stage has `only` 'probes'.*'pretrain full, seed 0'"):
        study(Config(file=file, out=tmp_path, only="probes", status=True))


def test_a_killed_study_continues_with_the_same_results(
    finished: tuple[Path, list[dict[str, Any]]], file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "train.study", str(file), "--out", str(out)]
    for stages in (3, 9):  # finished stages before the kill
        running = subprocess.Popen([*command, "--jobs", "1"], start_new_session=True)
        while running.poll() is None and len([*out.glob("*/*/result.json")]) < stages:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    study(Config(file=file, out=out, jobs=1))
    assert rows(out) == rows(finished[0])


def test_a_study_that_was_moved_continues(
    finished: tuple[Path, list[dict[str, Any]]], file: Path, tmp_path: Path
) -> None:
    out, _ = finished
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    shutil.rmtree(moved / "finetune")
    shutil.rmtree(moved / "features")
    for result in moved.rglob("result.json"):
        result.write_text(result.read_text().replace(str(out), "/gone"))
    study(Config(file=file, out=moved, jobs=1))
    assert rows(moved) == rows(out)


def test_a_failed_stage_is_named_and_the_others_finish(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    text = FILE.replace('"target_', f'"{file.parent}/target_').replace(
        "source_", f"{file.parent}/source_"
    )
    broken.write_text(text.replace("linear_probe: {", "linear_probe: {arch: resnet18, "))
    chosen = Config(file=broken, out=tmp_path / "out", jobs=1, only="finetune full")
    name = "finetune full, linear_probe on target, seed 0"
    with pytest.raises(ValueError, match=rf"stages failed, first {name}: .*--retry-failed"):
        study(chosen)
    assert not (tmp_path / "out" / "result.json").exists()
    assert f'"name": "{name}"' in (tmp_path / "out" / "log.jsonl").read_text()
    capsys.readouterr()
    study(replace(chosen, status=True))
    assert f"failed: {name}: " in capsys.readouterr().out


def test_surrogates_of_every_kind_score_for_several_targets(file: Path) -> None:
    save_checkpoint(file.parent / "own.pt", build_model("resnet8_w16", 6))
    text = FILE.replace("{target:", "{both: [target, other], other: 'other_{split}.beton', target:")
    text = text.replace("{label_mapping: {}, random", "{METHODS, random").replace(
        "METHODS",
        "label_mapping: {surrogate: own, dtype: float16}, "
        "pseudo: {method: feature_mapping, clusters: 4, surrogate: moco}, "
        "class_influence: {influence: {runs: 2, pretrain: {epochs: 1}, probe: {epochs: 1}}}, "
        "aum: {surrogate: recorded}, prototype_distance: {clusters: 4}",
    )
    text = text.replace("keeps: [0.5]\nseeds: 2", "keeps: {equal_epochs: [0.5]}\nseeds: [3]")
    text = text.replace(
        "{default: {epochs: 1}}",
        "{own: own.pt, recorded: {epochs: 2, record_dynamics: true}, moco: {recipe: pretrain-moco, "
        "arch: resnet8_w16, epochs: 1, batch_size: 16, queue: 32}}",
    )
    (file.parent / "many.yaml").write_text(text)
    compared = study(Config(file=file.parent / "many.yaml", out=file.parent / "many", jobs=1))
    assert {(row["scored_on"], row["target"], row["method"]) for row in compared} == {
        (scored_on, target, method)
        for scored_on, target in [
            ("target", "target"), ("other", "other"), ("both", "target"), ("both", "other")
        ]
        for method in ("label_mapping", "pseudo", "class_influence", "aum",
                       "prototype_distance", "random")
    }  # fmt: skip
    selections = map(Selection.load, (file.parent / "many").glob("selection/*/selection.npz"))
    assert {each.provenance["method"] for each in selections} == {
        "label_mapping", "sum_label_mapping", "feature_mapping", "sum_feature_mapping",
        "class_influence", "rank_class_influence", "aum", "prototype_distance", "random",
    }  # fmt: skip


def test_scores_are_made_from_the_dynamics_of_the_surrogate(tmp_path: Path) -> None:
    surrogate = Stage(kind="pretrain", facts={}, root=tmp_path)
    given = dynamics_of(9, 4)
    (surrogate.folder / "run").mkdir(parents=True)
    given.save(surrogate.folder / "run" / "dynamics.npz")
    facts = {"method": "aum", "options": {"prefer": "low"}}
    stage = Stage(kind="score", facts=facts, needs={"dynamics": surrogate}, root=tmp_path)
    stage.folder.mkdir(parents=True)
    work.score(stage, None)
    found = Scores.load(stage.folder / "scores.npz")
    np.testing.assert_array_equal(found.scores, aum(given, prefer="low").scores)
