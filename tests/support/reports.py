"""Results of a demo, as a report reads them."""

from typing import Any


def row(method: str, keep: float, accuracy: float, **other: Any) -> dict[str, Any]:
    """Return a row of a source of 1,200 samples of 12 classes."""
    values: dict[str, Any] = {
        "method": method,
        "keep": keep,
        "finetuning": "linear_probe",
        "budget": "equal_epochs",
        "retained_classes": round(12 * keep),
        "retained_samples": round(1200 * keep),
        "pretrain_seconds": 30.0 * keep,
        "selection_seconds": 0.0 if method == "full" else 9.0,
        "speedup": 1 / keep,
        "speedup_with_selection": 30 / (30 * keep + 9.0 * (method != "full")),
        "test_accuracy_mean": accuracy,
        "test_accuracy_spread": 0.01,
        "test_accuracies": [accuracy - 0.00707, accuracy + 0.00707],
        "relevant_share": 1.0 if method == "label_mapping" else 0.25,
        "relevant_found": 1.0,
    }
    return values | other


def result() -> dict[str, Any]:
    """Return a `result.json` with all methods, two finetunings and two budgets."""
    runs: list[tuple[Any, ...]] = [
        ("full", 1.0, 0.93),
        ("label_mapping", 0.25, 0.95),
        ("label_mapping", 0.5, 0.95),
        ("feature_mapping", 0.25, 0.90),
        ("feature_mapping", 0.5, 0.925),
        ("random", 0.25, 0.7),
        ("random", 0.5, 0.7),
    ]
    slow = {"budget": "equal_iterations", "speedup": 0.99}
    rows = []
    for finetuning in ("linear_probe", "full_finetuning"):
        rows += [row(*each, finetuning=finetuning) for each in runs]
        rows.append(row("label_mapping", 0.25, 0.96, finetuning=finetuning, **slow))
    return {
        "environment": {"cpu": "a <fast> one", "cores": 2},
        "seeds": [0, 1],
        "rows": rows,
        "stages": [{"stage": "surrogate", "seconds": 12.3}, {"stage": "pretrain", "seconds": 1.1}],
        "definitions": {"speedup": "full seconds < or > row seconds"},
        "classes": {
            "source": "source.beton",
            "relevant": [0, 1, 2],
            "scores": {name: f"{name}.npz" for name in ("label_mapping", "feature_mapping")},
            "selections": {"label_mapping, keep 0.25": "label_mapping_0.25.npz"},
        },
    }
