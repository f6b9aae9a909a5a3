"""The demo, small: stopped half-way, continued, run again, and started over."""

import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp4tl_ffcv import BetonIndex, Scores, Selection
from dp4tl_ffcv.writers import digits
from train import demo
from train.components import demo_runs
from train.components.session import Session

ALL_ORIGINALS = digits.ORIGINALS
METHODS = {"full", "label_mapping", "feature_mapping", "random"}
FINETUNING = {"linear_probe", "full_finetuning"}
KEYS = {
    "method", "keep", "finetuning", "budget", "retained_classes", "retained_samples",
    "pretrain_steps", "pretrain_seconds", "pretrain_seconds_all", "selection_seconds", "speedup",
    "speedup_with_selection", "test_accuracy_mean", "test_accuracy_spread", "test_accuracies",
    "relevant_share", "relevant_found",
}  # fmt: skip


@dataclass
class Finished:
    """A demo that was stopped in its second pretraining, then continued to the end."""

    config: demo.Config
    before_the_stop: list[Path]
    after_the_stop: list[Path]
    output: list[str]

    @property
    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.config.out / "result.json").read_text())
        return content


def spy_on_training(patch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that gets the folder of every run that trains from here on."""
    trained: list[Path] = []
    start = Session.start

    def spied(self: Session) -> None:
        trained.append(self.config.run)
        start(self)

    patch.setattr(Session, "start", spied)
    return trained


@pytest.fixture(scope="module", autouse=True)
def few_originals() -> Iterator[None]:
    """A few images instead of thousands."""
    few = {key: 1 if key in (("source", "val"), ("source", "test")) else 2 for key in ALL_ORIGINALS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "ORIGINALS", few)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    once: Any = dict.fromkeys(("surrogate_epochs", "epochs", "probe_epochs", "finetune_epochs"), 1)
    out = tmp_path_factory.mktemp("runs") / "demo"
    config = demo.Config(
        out=out, keeps=(0.25,), control_keep=0.25, seeds=(0,), num_workers=1, **once
    )
    with pytest.MonkeyPatch.context() as patch:
        before = spy_on_training(patch)
        count = Session.count

        def stop_in_the_third_pretraining(self: Session, *batch: Any) -> None:
            if before[-1].parent.name == "pretrain" and len(before) == 5:
                raise KeyboardInterrupt
            count(self, *batch)

        patch.setattr(Session, "count", stop_in_the_third_pretraining)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(config)
        assert not (config.out / "result.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        after = spy_on_training(patch)
        output: list[str] = []
        patch.setattr(
            "builtins.print", lambda *parts, **_: output.append(" ".join(map(str, parts)))
        )
        assert demo.run_demo(config) == config.out / "report.html"
    return Finished(config, before, after, output)


def test_a_stopped_demo_continues_where_it_was(finished: Finished) -> None:
    out = finished.config.out
    *whole, stopped = (str(run.relative_to(out)) for run in finished.before_the_stop)
    tuned = [f"finetune/full_1_seed0/{mode}" for mode in ("linear_probe", "full_finetuning")]
    assert whole == ["pretrain/surrogate", "pretrain/full_1_seed0", *tuned]
    after = [str(run.relative_to(out)) for run in finished.after_the_stop]
    assert after[0] == stopped
    # Of the full source and of three methods, each with a control: pretraining and two finetunings.
    assert len(after) == len(set(after)) == 6 * 3
    assert not set(after) & set(whole)
    assert f"{out / 'scores'}: finished before, reused" in finished.output


def test_there_is_a_row_for_each_method_keep_budget_and_finetuning(finished: Finished) -> None:
    rows = finished.result["rows"]
    found = [tuple(row[k] for k in ("method", "keep", "budget", "finetuning")) for row in rows]
    expected = {("full", 1.0, "equal_epochs", finetuning) for finetuning in FINETUNING}
    for method in METHODS - {"full"}:
        for budget in ("equal_epochs", "equal_iterations"):
            expected |= {(method, 0.25, budget, finetuning) for finetuning in FINETUNING}
    assert len(found) == len(expected)
    assert set(found) == expected
    assert all(row.keys() >= KEYS for row in rows)


def test_the_figures_of_the_rows_agree_with_the_files(finished: Finished) -> None:
    out, rows = finished.config.out, finished.result["rows"]
    relevant = digits.relevant_classes()
    full = next(row for row in rows if row["method"] == "full")
    assert full["retained_classes"] == 80
    assert full["retained_samples"] == 160
    assert full["speedup"] == full["speedup_with_selection"] == 1
    for row in rows:
        name = {"full": "full_1", "random": "random_0.25"}.get(row["method"])
        name = name or f"{row['method']}_0.25"
        control = "_equal_iterations" if row["budget"] == "equal_iterations" else ""
        folder = f"{name}{control}_seed0"
        pretrained = json.loads((out / "pretrain" / folder / "result.json").read_text())
        tuned = json.loads(
            (out / "finetune" / folder / row["finetuning"] / "result.json").read_text()
        )
        assert row["pretrain_seconds"] == pretrained["pretrain_seconds"]
        assert row["pretrain_steps"] == pretrained["steps"]
        equal = row["method"] == "full" or row["budget"] == "equal_iterations"
        assert (row["pretrain_steps"] == full["pretrain_steps"]) == equal
        assert row["test_accuracies"] == [tuned["test_accuracy"]]
        assert row["test_accuracy_mean"] == tuned["test_accuracy"]
        assert row["test_accuracy_spread"] is None  # of one seed there is none
        assert row["speedup"] == pytest.approx(full["pretrain_seconds"] / row["pretrain_seconds"])
        if row["method"] == "full":
            continue
        name = name.replace("random", "random_seed0")
        selection = Selection.load(out / "selections" / f"{name}.npz")
        index = BetonIndex.open(out / "data" / "source_train.beton")
        assert selection.fingerprint == index.fingerprint
        method = {"random": "random_seed0"}.get(row["method"], row["method"])
        scores = Scores.load(out / "scores" / f"{method}.npz")
        assert selection.classes.tolist() == sorted(scores.ranking()[:20].tolist())
        assert row["retained_classes"] == len(selection.classes) == 20
        assert row["retained_samples"] == len(selection) == 40
        assert row["relevant_share"] == pytest.approx(relevant[selection.classes].mean())
        assert row["relevant_found"] == pytest.approx(relevant[selection.classes].sum() / 10)
        assert row["selection_seconds"] > 0
        assert row["speedup_with_selection"] < row["speedup"]


def test_the_result_names_machine_settings_stages_and_columns(finished: Finished) -> None:
    result = finished.result
    assert result["environment"]["cores"] >= 1
    assert result["seeds"] == [0]
    assert result["config"]["keeps"] == [0.25]
    assert len(result["stages"]) == 4  # the fifth writes the result
    assert result["definitions"].keys() - {"equal_epochs", "equal_iterations"} <= KEYS
    assert "8-mirrored" in (finished.config.out / "report.html").read_text()


def test_a_second_run_trains_nothing_and_ends_with_the_path_of_the_report(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished.result
    trained = spy_on_training(monkeypatch)
    config = finished.config
    numbers = {
        name.replace("_", "-"): getattr(config, name)
        for name in ("surrogate_epochs", "epochs", "probe_epochs", "finetune_epochs", "num_workers")
    }
    arguments = [str(part) for name, value in numbers.items() for part in (f"--{name}", value)]
    arguments += ["--out", str(config.out), "--keeps", "0.25", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["train.demo", *arguments])
    monkeypatch.delitem(sys.modules, "train.demo")
    runpy.run_module("train.demo", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr().out.splitlines()
    assert trained == []
    assert Path(printed[-1]) == config.out / "report.html"
    assert len([line for line in printed if "reused" in line]) == 2 + 7 * 3
    assert len([line for line in printed if "already written" in line]) == 6
    assert finished.result["rows"] == before["rows"]


def test_a_deleted_selection_is_made_again(finished: Finished, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.config.out, tmp_path / "demo"))
    selection = out / "selections" / "label_mapping_0.25.npz"
    selection.unlink()
    surrogate = json.loads((out / "pretrain" / "surrogate" / "result.json").read_text())
    demo.score_and_select(replace(finished.config, out=out), surrogate)
    assert selection.exists()


def test_fresh_deletes_what_the_demo_wrote_and_nothing_else(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: digits.Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "write", stop)
    out = Path(shutil.copytree(finished.config.out, tmp_path / "demo"))
    (out / "leftover").touch()
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(replace(finished.config, out=out, fresh=True))
    assert {path.name for path in out.iterdir()} == {"leftover", "stages.json"}
    (out / "data").touch()  # a file cannot be deleted as a folder
    with pytest.raises(NotADirectoryError):
        demo.start_over(out)


def outcome(seconds: float, rate: float, *accuracies: float) -> dict[str, Any]:
    return {
        "pretrain_seconds": seconds,
        "images_per_second": rate,
        "steps": 7,
        "retained_classes": 80,
        "retained_samples": 320,
        "selection": None,
        "accuracies": dict(zip(("linear_probe", "full_finetuning"), accuracies, strict=True)),
    }


def test_speed_ups_compare_the_fastest_seeds_and_accuracies_their_mean() -> None:
    outcomes = {
        ("full", 1.0, "equal_epochs"): [outcome(40, 500, 0.9, 0.8), outcome(20, 1000, 0.8, 0.8)],
        ("label_mapping", 0.5, "equal_epochs"): [
            outcome(10, 990, 0.7, 0.6),
            outcome(12, 960, 0.9, 0.6),
        ],
    }
    rows = demo_runs.summarise(outcomes, {"label_mapping": 6.0}, digits.relevant_classes())
    probe = next(
        r for r in rows if r["method"] == "label_mapping" and r["finetuning"] == "linear_probe"
    )
    assert probe["pretrain_seconds"] == 10
    assert probe["pretrain_seconds_all"] == [10, 12]
    assert probe["speedup"] == 2.0
    assert probe["speedup_with_selection"] == 20 / 16
    assert probe["test_accuracy_mean"] == pytest.approx(0.8)
    assert probe["test_accuracy_spread"] == pytest.approx(np.sqrt(0.02))


def test_uneven_rates_are_named() -> None:
    even = {("full", 1.0, "equal_epochs"): [outcome(1, 1000, 0, 0), outcome(1, 1200, 0, 0)]}
    assert demo_runs.uneven_rates(even) is None
    busy = {**even, ("label_mapping", 0.5, "equal_epochs"): [outcome(1, 500, 0, 0)]}
    warning = demo_runs.uneven_rates(busy)
    assert warning is not None
    assert "500 to 1200 images/s" in warning


def test_the_full_source_is_first_in_one_seed_and_last_in_the_next(tmp_path: Path) -> None:
    plan = demo_runs.plan(demo.Config(out=tmp_path))
    assert [run.method for run in plan].index("full") == 0
    assert plan[-1].method == "full"
    assert {run.seed for run in plan[: len(plan) // 2]} == {0}


@pytest.mark.slow
def test_the_whole_demo_shows_what_the_paper_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "ORIGINALS", ALL_ORIGINALS)
    config = demo.Config(out=tmp_path / "demo")
    demo.run_demo(config)
    rows = json.loads((config.out / "result.json").read_text())["rows"]
    equal = [row for row in rows if row["budget"] == "equal_epochs"]
    for method in ("label_mapping", "feature_mapping"):
        assert any(shows_the_claim(row, equal) for row in equal if row["method"] == method)


def shows_the_claim(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Say whether a row is as accurate as the full source, faster, and ahead of random."""
    same = [other for other in rows if other["finetuning"] == row["finetuning"]]
    full = next(other for other in same if other["method"] == "full")
    random = next(o for o in same if o["method"] == "random" and o["keep"] == row["keep"])
    return bool(
        row["keep"] <= 0.5
        and row["test_accuracy_mean"] >= full["test_accuracy_mean"] - full["test_accuracy_spread"]
        and row["speedup"] >= 1.8
        and row["relevant_share"] > random["relevant_share"]
    )
