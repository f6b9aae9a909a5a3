"""The pretraining runs of the demo, and the rows that report them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp4tl_ffcv import Selection

from ..configs.demo import Config

MAPPINGS = ("label_mapping", "feature_mapping")
METHODS = (*MAPPINGS, "random")
FULL = ("full", 1.0, "equal_epochs")

Outcomes = dict[tuple[str, float, str], list[dict[str, Any]]]
"""Measurements of every seed, by method, keep and budget."""

DEFINITIONS = {
    "keep": "share of the source's classes that is retained",
    "pretrain_seconds": "wall-clock seconds of the training loop, loading included, compilation "
    "and validation excluded; of the fastest seed, since other work of the machine only adds time",
    "pretrain_seconds_all": "the same for every seed, in the order of `seeds`",
    "selection_seconds": "seconds of surrogate training, feature extraction, scoring and selecting",
    "speedup": "pretraining seconds of the full source / of this row",
    "speedup_with_selection": "the same, with the selection's seconds added to this row's",
    "test_accuracy_spread": "sample standard deviation over seeds",
    "relevant_share": "share of the retained classes that are in the target's rendering",
    "relevant_found": "share of the classes in the target's rendering that are retained",
    "equal_epochs": "as many passes over the retained samples as the full run makes over all",
    "equal_iterations": "as many optimiser steps as the full run",
}

_EVEN = 1.25  # largest ratio between the images per second of two runs on an idle machine


@dataclass(frozen=True)
class Run:
    """One pretraining run of the plan."""

    method: str
    keep: float
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """Folder name."""
        control = "_equal_iterations" if self.budget == "equal_iterations" else ""
        return f"{self.method}_{self.keep:g}{control}_seed{self.seed}"

    @property
    def scores(self) -> str:
        """Name of the scores file: random scores differ by seed."""
        return f"random_seed{self.seed}" if self.method == "random" else self.method

    @property
    def selection(self) -> str | None:
        """Name of the selection file."""
        return None if self.method == "full" else f"{self.scores}_{self.keep:g}"


def plan(config: Config) -> list[Run]:
    """Return all pretraining runs: the full source, each method and fraction, the controls.

    The full source is first for one seed and last for the next, so that a machine that slows
    down favours neither side.
    """
    runs: list[Run] = []
    for position, seed in enumerate(config.seeds):
        turn = [Run(*FULL, seed)]
        for method in METHODS:
            turn += [Run(method, keep, "equal_epochs", seed) for keep in config.keeps]
            turn.append(Run(method, config.control_keep, "equal_iterations", seed))
        runs += turn if position % 2 == 0 else turn[::-1]
    return runs


def summarise(
    outcomes: Outcomes, selection_seconds: Mapping[str, float], relevant: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return the rows of the result, one per method, keep, budget and finetuning.

    Args:
        outcomes: measurements of every run.
        selection_seconds: cost of a selection, by method.
        relevant: bool `(C,)`, True for the relevant source classes.
    """
    fastest = {
        key: min(float(run["pretrain_seconds"]) for run in runs) for key, runs in outcomes.items()
    }
    rows = []
    for (method, keep, budget), runs in outcomes.items():
        seconds, cost = fastest[method, keep, budget], selection_seconds.get(method, 0.0)
        retained = [
            relevant[Selection.load(run["selection"]).classes] if run["selection"] else relevant
            for run in runs
        ]
        shared = {
            "method": method,
            "keep": keep,
            "budget": budget,
            "retained_classes": runs[0]["retained_classes"],
            "retained_samples": runs[0]["retained_samples"],
            "pretrain_steps": runs[0]["steps"],
            "pretrain_seconds": seconds,
            "pretrain_seconds_all": [run["pretrain_seconds"] for run in runs],
            "selection_seconds": cost,
            "speedup": fastest[FULL] / seconds,
            "speedup_with_selection": fastest[FULL] / (seconds + cost),
            "relevant_share": float(np.mean([part.mean() for part in retained])),
            "relevant_found": float(np.mean([part.sum() for part in retained]) / relevant.sum()),
        }
        for finetuning in runs[0]["accuracies"]:
            accuracies = [run["accuracies"][finetuning] for run in runs]
            spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
            rows.append(
                {
                    **shared,
                    "finetuning": finetuning,
                    "test_accuracy_mean": float(np.mean(accuracies)),
                    "test_accuracy_spread": spread,
                    "test_accuracies": accuracies,
                }
            )
    return rows


def uneven_rates(outcomes: Outcomes) -> str | None:
    """Return a warning if the pretraining runs differ too much in images per second, or None."""
    rates = [run["images_per_second"] for runs in outcomes.values() for run in runs]
    if max(rates) <= _EVEN * min(rates):
        return None
    return (
        f"pretraining ran at {min(rates):.0f} to {max(rates):.0f} images/s: the machine was busy "
        "with something else at times, so the times and speed-ups may be off by the same factor"
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows that the report shows in full."""
    print(
        f"\n{'method':<16}{'keep':>6}  {'budget':<17}{'finetuning':<16}{'classes':>7}"
        f"{'seconds':>9}{'speed-up':>9}{'with cost':>10}{'accuracy':>16}{'relevant':>9}"
    )
    for row in sorted(rows, key=lambda row: (row["finetuning"], row["budget"], -row["keep"])):
        spread = row["test_accuracy_spread"]
        accuracy = f"{row['test_accuracy_mean']:.3f}"
        accuracy += "" if spread is None else f" ± {spread:.3f}"
        print(
            f"{row['method']:<16}{row['keep']:>6g}  {row['budget']:<17}{row['finetuning']:<16}"
            f"{row['retained_classes']:>7}{row['pretrain_seconds']:>9.1f}{row['speedup']:>9.2f}"
            f"{row['speedup_with_selection']:>10.2f}{accuracy:>16}{row['relevant_share']:>9.2f}"
        )
