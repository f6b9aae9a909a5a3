"""The planted benchmark: its rules, its rows and the report that is made from them."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.planted import report
from benchmarks.planted.cases import QUICK, Case, merge, run_row
from benchmarks.planted.encoder import contrastive_loss
from benchmarks.planted.report import largest_pruning, write_report
from benchmarks.planted.runs import Job, Training, run_all
from benchmarks.planted.scores import variants
from dp4tl_ffcv.scoring import methods

JOB = Job(selection=None, digest="one", seed=0, targets=("target",), images=10)


@pytest.mark.parametrize("rule", ["mean", "t"])
def test_all_keeps_from_the_largest_down_must_pass(rule: str) -> None:
    full = [0.80, 0.82, 0.84]
    kept = {
        0.1: [0.9, 0.9, 0.9],  # passes, but a larger keep does not
        0.2: [0.70, 0.72, 0.74],
        0.4: [0.80, 0.82, 0.84],
        0.9: [0.81, 0.83, 0.85],
    }
    assert largest_pruning(full, kept, rule) == pytest.approx(0.6)


def test_a_small_loss_passes_the_t_test_if_it_varies_and_never_the_rule_of_the_mean() -> None:
    full, varied, steady = [0.80, 0.82, 0.84], [0.80, 0.80, 0.84], [0.79, 0.80, 0.83]
    assert largest_pruning(full, {0.5: varied}, "mean") == 0.0
    assert largest_pruning(full, {0.5: varied}, "t") == 0.5  # -0.0067 + 2.92 * 0.0115 / sqrt(3) > 0
    assert largest_pruning(full, {0.5: steady}, "mean") == 0.0
    assert largest_pruning(full, {0.5: steady}, "t") == 0.0


def test_targets_with_the_same_selection_share_a_pretraining_run() -> None:
    jobs = [
        replace(JOB, targets=("b",)),
        replace(JOB, targets=("a",)),
        replace(JOB, seed=1),
        replace(JOB, digest="two"),
    ]
    found = merge(iter(jobs))
    assert list(found) == [("one", 0), ("one", 1), ("two", 0)]
    assert found["one", 0].targets == ("a", "b")


def test_a_row_counts_retained_samples_and_averages_targets() -> None:
    relevant = np.array([True, True, False, False, True])
    job = replace(JOB, targets=("a", "b"))
    case = Case("label_mapping", "combined", 0.4, 0, job, relevant, np.array([1, 2, 3]))
    accuracies = {"a": {"linear_probe": 0.5}, "b": {"linear_probe": 0.7}, "c": {"linear_probe": 0}}
    row = run_row(case, {"retained_classes": 2, "accuracies": accuracies})
    assert row["precision"] == pytest.approx(1 / 3)
    assert row["recall"] == pytest.approx(1 / 3)
    assert row["accuracy"] == {"linear_probe": pytest.approx(0.6)}


def test_finished_runs_with_the_same_settings_are_reused(tmp_path: Path) -> None:
    training, called = Training(data=tmp_path), []

    def call(_: Training, job: Job) -> dict[str, int]:
        called.append(job.seed)
        return {"seed": job.seed}

    jobs = [JOB, replace(JOB, seed=1)]
    for settings, expected in (
        (training, [0, 1]),
        (training, []),
        (replace(training, epochs=9), [0, 1]),
    ):
        called.clear()
        results = run_all(call, settings, jobs, tmp_path / "runs", 1, "runs")
        assert results == [{"seed": 0}, {"seed": 1}]
        assert called == expected


def test_the_loss_is_that_of_a_loop_over_views() -> None:
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 4)))
    unit = outputs.numpy() / np.linalg.norm(outputs.numpy(), axis=1, keepdims=True)
    losses = []
    for one in range(6):
        others = [other for other in range(6) if other != one]
        weights = {other: np.exp(unit[one] @ unit[other] / 0.5) for other in others}
        losses.append(-np.log(weights[(one + 3) % 6] / sum(weights.values())))
    assert contrastive_loss(outputs, 0.5).item() == pytest.approx(np.mean(losses))


def rows() -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for method, target in product(
        ("label_mapping", "feature_mapping", "random_class"), ("target", "combined")
    ):
        shared = {"bench": "planted", "method": method, "target": target}
        costs = {"unit": "class", "scoring_seconds": 1.0, "training_seconds": 10.0}
        made.append({**shared, "figure": "cost", **costs})
        if target == "target" and method != "random_class":
            votes = {"upright": 0.7, "rotated": 0.3}
            made.append({**shared, "figure": "votes", "relevant": "upright", "votes": votes})
    cells = [
        ("full", 1.0, 0.8),
        ("label_mapping", 0.2, 0.9),
        ("feature_mapping", 0.2, 0.85),
        ("random_class", 0.2, 0.4),
    ]
    for (method, keep, mean), target, seed in product(cells, ("target", "combined"), range(3)):
        accuracy = {"linear_probe": mean + seed / 100, "full_finetuning": mean}
        about = {"figure": "run", "method": method, "target": target, "keep": keep, "seed": seed}
        made.append({**about, "precision": 0.5, "recall": 1.0, "accuracy": accuracy})
    return made


def test_the_report_is_made_from_the_result_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"seeds": [0, 1, 2], "arch": "a", "resolution": 1, "epochs": 1, "surrogate_epochs": 1}
    machine = {"cores": 2, "cpu": "a cpu", "gpu": "none", "torch": "2"}
    head = {"bench": "planted", "environment": machine, "params": params}
    results, readme = tmp_path / "planted.jsonl", tmp_path / "README.md"
    results.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *rows())))
    monkeypatch.setattr(report, "README", readme)
    assert write_report(results) == readme
    text = readme.read_text()
    assert "label mapping 80%, feature mapping 80% pruned with no loss" in text
    assert "| random class | 0% / 0% | 0% / 0% |" in text
    assert "| label mapping | class | 50% | 100% | 91.0 / 90.0 % | 1.00 s | 11.0 s |" in text
    assert (tmp_path / "results" / "planted.png").read_bytes().startswith(b"\x89PNG")
    write_report(results)
    assert readme.read_text() == text


def test_every_method_whose_inputs_the_benchmark_has_is_run() -> None:
    assert set(QUICK.methods) <= set(variants())
    assert {v.method.name for v in variants().values()} == set(methods.names()) - {"class_list"}
    assert {n for n in variants() if n.startswith("feature_mapping")} == {
        "feature_mapping",
        "feature_mapping_clusters",
        "feature_mapping_label_free",
    }
