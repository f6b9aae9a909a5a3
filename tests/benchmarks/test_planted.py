"""The planted benchmark: its rules, its rows and its runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.planted import runs, table
from benchmarks.planted.bench import QUICK, relevance
from benchmarks.planted.encoder import contrastive_loss
from benchmarks.planted.figures.run import outcome
from benchmarks.planted.runs import Job, Runs, Scale, merge
from benchmarks.planted.variants import variants
from dp4tl_ffcv.scoring import methods

FULL = [0.80, 0.82, 0.84]


@pytest.mark.parametrize(
    ("kept", "by_mean", "by_t"),
    [
        # 0.1 passes, but a larger keep does not.
        ({0.1: [0.9] * 3, 0.2: [0.70, 0.72, 0.74], 0.4: FULL, 0.9: [0.81, 0.83, 0.85]}, 0.6, 0.6),
        ({0.5: [0.80, 0.80, 0.84]}, 0.0, 0.5),  # -0.0067 + 2.92 * 0.0115 / sqrt(3) > 0
        ({0.5: [0.79, 0.80, 0.83]}, 0.0, 0.0),
    ],
    ids=["all larger keeps must pass", "a small loss that varies", "a steady loss"],
)
def test_the_rules_of_no_loss(kept: dict[float, list[float]], by_mean: float, by_t: float) -> None:
    found = {
        (method, "target", keep): [{"accuracy": {"mode": value}} for value in values]
        for method, keep, values in (("full", 1.0, FULL), *(("m", *item) for item in kept.items()))
    }
    for rule, expected in (("mean", by_mean), ("t", by_t)):
        assert table.pruned(found, "m", "target", "mode", rule) == pytest.approx(expected)


def test_targets_with_the_same_selection_share_a_pretraining_run() -> None:
    jobs = [("one", 0, "b"), ("one", 0, "a"), ("one", 1, "a"), ("two", 0, "a")]
    found = merge(Job(None, digest, seed, (target,)) for digest, seed, target in jobs)
    assert list(found) == [("one", 0), ("one", 1), ("two", 0)]
    assert found["one", 0].targets == ("a", "b")


def test_a_row_counts_retained_samples_and_averages_targets() -> None:
    relevant = np.array([True, True, False, False, True])
    row = relevance(np.array([1, 2, 3]), relevant)
    assert row == {"samples": 3, "precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 3)}
    tuned = {
        target: {"linear_probe": {"test_accuracy": accuracy}}
        for target, accuracy in (("a", 0.5), ("b", 0.7), ("c", 0))
    }
    result = {"pretrained": {"retained_classes": 2}, "tuned": tuned}
    accuracy = outcome(Job(None, "one", 0, ("a", "b")), result)["accuracy"]
    assert accuracy == {"linear_probe": pytest.approx(0.6)}


def test_each_run_is_pretrained_and_finetuned_in_folders_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(config: Any) -> dict[str, str]:
        return {"checkpoint": "last.pt", "run": str(config.run.relative_to(tmp_path))}

    monkeypatch.setattr(runs.pretrain, "pretrain", recipe)
    monkeypatch.setattr(runs.finetune, "finetune", recipe)
    scale = Scale(modes=("linear_probe",), processes=1)
    jobs = [Job(None, "one", seed, ("target",)) for seed in (0, 1)]
    results = Runs(scale, tmp_path).do_all(jobs, "runs")
    assert [result["pretrained"]["run"] for result in results] == [
        "runs/one_0/pretrain", "runs/one_1/pretrain",
    ]  # fmt: skip
    assert results[1]["tuned"]["target"]["linear_probe"]["run"] == "runs/one_1/target/linear_probe"


def test_the_loss_is_that_of_a_loop_over_views() -> None:
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 4)))
    unit = outputs.numpy() / np.linalg.norm(outputs.numpy(), axis=1, keepdims=True)
    losses = []
    for one in range(6):
        others = [other for other in range(6) if other != one]
        weights = {other: np.exp(unit[one] @ unit[other] / 0.5) for other in others}
        losses.append(-np.log(weights[(one + 3) % 6] / sum(weights.values())))
    assert contrastive_loss(outputs, 0.5).item() == pytest.approx(np.mean(losses))


def test_every_method_whose_inputs_the_benchmark_has_is_run() -> None:
    assert set(QUICK[0].methods) <= set(variants())
    assert {v.method.name for v in variants().values()} == set(methods.names()) - {"class_list"}
    assert {n for n in variants() if n.startswith("feature_mapping")} == {
        "feature_mapping",
        "feature_mapping_clusters",
        "feature_mapping_label_free",
    }
