"""Folders of studies, as a report reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_ffcv import Selection
from dp4tl_ffcv.report.findings import Row
from dp4tl_ffcv.report.names import COSTS
from tests.support.images import write_images
from tests.support.scores import scores_of

NAMES = ("label_mapping", "feature_mapping", "random")
COUNT = 12  # classes of the source, of 100 samples each
KEEPS = (0.5, 0.25)
# Difference of each method's accuracy to the full source, by fraction kept.
LOSSES = {
    "label_mapping": {0.5: 0.0, 0.25: -0.002},
    "feature_mapping": {0.5: 0.001, 0.25: -0.04},
    "random": {0.5: -0.1, 0.25: -0.2},
}


def row(method: str, keep: float, seed: int, **other: Any) -> dict[str, Any]:
    """Return a row of a source of 1,200 samples of 12 classes."""
    loss = 0.0 if method == "full" else LOSSES[method][keep]
    cost = float(method in NAMES[:2])
    stage = f"{method}_{keep}_{seed}".replace(".", "")
    values: dict[str, Any] = {
        "target": "upright",
        "scored_on": "upright",
        "method": method,
        "keep": keep,
        "budget": "equal_epochs",
        "seed": seed,
        "mode": "linear_probe",
        "kept": keep,
        "test_accuracy": 0.93 + 0.01 * seed + loss + 0.001 * loss * seed,
        "classes": round(COUNT * keep),
        "samples": round(100 * COUNT * keep),
        "steps": round(100 * keep),
        "clock": "processor",
        "pretrain_seconds": 30.0 * keep,
        "selection_seconds": 9.0 * cost,
        **dict(zip(COSTS, (6.0 * cost, 2.0 * cost, 0.75 * cost, 0.25 * cost), strict=True)),
        "images_per_second": 1000.0,
        "pretrained": f"pretrain/{stage}",
        "finetuned": f"finetune/{stage}",
        "selection": None if method == "full" else f"selection/{stage}",
        "scores": None if method == "full" else f"score/{stage}",
    }
    if method == "random":
        values["random"] = "class"
    return values | other


def rows(
    seeds: int = 8, methods: Sequence[str] = NAMES, keeps: Sequence[float] = KEEPS
) -> list[dict[str, Any]]:
    """Return the rows of two budgets and two modes."""
    return [
        row(method, keep, seed, budget=budget, mode=mode)
        for seed in range(seeds)
        for budget in ("equal_epochs", "equal_steps")
        for method, keep in [("full", 1.0), *((m, keep) for m in methods for keep in keeps)]
        for mode in ("linear_probe", "full_finetuning")
    ]


def write_results(folder: Path, given: Sequence[Row], **summary: Any) -> None:
    """Write what a report reads first: the study, its rows and its summary."""
    methods = {row["method"] for row in given} - {"full"}
    study = {"methods": {name: {"method": name, "options": {}} for name in sorted(methods)}}
    made = {
        "command": "dp4tl study <a>.yaml",
        "source": "source.beton",
        "runs": len(given),
        "stages": {"pretrain": {"finished": len(given), "failed": 1}},
        "environment": {"cpu": "a <fast> one", "cores": 2},
    }
    for name, value in (("config", {"study": study}), ("summary", made | summary)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in given))


def write_study(
    folder: Path, given: Sequence[Row], images: Any = None, names: Any = None, **summary: Any
) -> Path:
    """Write a study with one image per class; scores and selections of its rows; and logs."""
    rng = np.random.default_rng(0)
    if images is None:
        sizes = [(8, 8), (300, 20), (9, 400), *[(32, 32)] * (COUNT - 3)]
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    names = names or [f"digit {number}" for number in range(len(images))]
    index = write_images(folder / "source.beton", images, range(len(images)), class_names=names)
    for each in given:
        if each["selection"] is not None:
            scores = np.arange(len(images), 0, -1.0)
            for place in (each["scores"], each["selection"]):
                (folder / place).mkdir(parents=True, exist_ok=True)
            scores_of(scores, method=each["method"]).save(folder / each["scores"] / "scores.npz")
            kept = np.arange(round(len(images) * each["kept"]))
            path = folder / each["selection"] / "selection.npz"
            Selection.of_classes(index, kept).save(path)
        for stage, name in ((each["pretrained"], "loss"), (each["finetuned"], "val_accuracy")):
            write_log(folder / stage / "run", name)
    write_results(folder, given, **summary)
    return folder


def write_log(run: Path, name: str) -> None:
    """Write the log and the configuration of a run of two epochs."""
    run.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"event": "start", "cpu": "a <fast> one", "gpu": "none"}]
    lines += [{"event": "epoch", "step": 10 * n, name: 1 / n} for n in (1, 2)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fingerprint = "f1" if name == "loss" else "f2"
    (run / "config.json").write_text(json.dumps({"train": fingerprint, "seed": 0}))
