"""The whole path on real images: betons, surrogate, scores, selections, pretraining, finetuning.

    python -m train.demo            # or: make demo

Which source classes does a target of ten handwritten digits need, out of eighty? The demo knows
(`writers.digits`), the methods do not; it ends with a table, `result.json` and `report.html`. A
second run takes over every stage that is finished; so does a run after Ctrl-C.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dp4tl_ffcv import (
    BetonIndex,
    Features,
    RunFolder,
    Scores,
    Selection,
    class_means,
    environment,
    evaluation_loader,
    extract_features,
    feature_mapping,
    label_mapping,
    load_checkpoint,
    one_line_errors,
    random_scores,
    read_image,
    select,
    sha256_of_file,
    write_json,
)
from dp4tl_ffcv.report import ClassScores, ContactSheet, write_report
from train import finetune, pretrain
from writers import digits

METHODS = ("lm", "fm", "random")
DEFINITIONS = {
    "keep": "share of the source's classes that is retained",
    "pretrain_seconds": "wall-clock seconds of the training loop, loading included, compilation "
    "and validation apart; mean over seeds",
    "selection_seconds": "seconds of surrogate training, feature extraction, scoring and selecting",
    "speedup": "pretraining seconds of the full source / of this row",
    "speedup_with_selection": "the same, with the selection's seconds added to this row's",
    "test_accuracy_spread": "sample standard deviation over seeds",
    "relevant_share": "share of the retained classes that are in the target's rendering",
    "relevant_found": "share of the classes in the target's rendering that are retained",
    "equal_epochs": "as many passes over the retained samples as the full run makes over all",
    "equal_iterations": "as many optimiser steps as the full run",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The demo's settings; the defaults take about six minutes on two cores."""

    out: Path = Path("runs/demo")
    """Folder of everything that the demo makes."""
    fresh: bool = False
    """Delete what earlier runs left and start over."""
    keeps: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Shares of the source classes to retain."""
    control_keep: float = 0.25
    """Keep that is trained at equal iterations as well."""
    seeds: tuple[int, ...] = (0, 1)
    """Each repeats pretraining and finetuning."""
    surrogate_epochs: int = 6
    """Passes over the full source for the surrogate."""
    epochs: int = 6
    """Passes over the retained samples in pretraining."""
    probe_epochs: int = 50
    """Passes over the target's features for a linear probe."""
    finetune_epochs: int = 10
    """Passes over the target's images in full finetuning."""
    variants: int = 1
    """Renderings of each original per source class."""
    num_workers: int = -1
    """Loading threads; -1 takes every core."""


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
    def selection(self) -> str | None:
        """Name of the selection file; random draws anew for every seed."""
        if self.method == "full":
            return None
        seed = f"_seed{self.seed}" if self.method == "random" else ""
        return f"{self.method}_{self.keep:g}{seed}"


@dataclass
class Demo:
    """The stages, and what they cost."""

    config: Config
    stages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """Folder of the betons."""
        return self.config.out / "data"

    def selection_path(self, name: str) -> Path:
        """Return the file of a selection."""
        return self.config.out / "selections" / f"{name}.npz"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and keep its seconds."""
        print(f"-- {name}", flush=True)
        started = time.perf_counter()
        yield
        self.stages.append({"stage": name, "seconds": time.perf_counter() - started})

    # -- 1. data ---------------------------------------------------------------------------------
    def write_data(self) -> None:
        """Write the six betons unless they are there."""
        settings = digits.Config(out=self.data, variants=self.config.variants)
        run = RunFolder(self.data, {"writer": "digits", "variants": settings.variants})
        finished = run.finished()
        if finished and all(
            (self.data / f"{name}.beton").exists() for name in finished["fingerprints"]
        ):
            print(f"{self.data}: finished before, reused")
            return
        run.start()
        written = digits.write(settings)
        run.finish({"fingerprints": {name: index.fingerprint for name, index in written.items()}})

    # -- 2. surrogate ----------------------------------------------------------------------------
    def pretraining(self, name: str, **changes: Any) -> pretrain.Config:
        """Return a pretraining configuration; all runs share everything but `changes`."""
        settings: dict[str, Any] = {
            "train": self.data / "source_train.beton",
            "val": self.data / "source_val.beton",
            "run": self.config.out / "pretrain" / name,
            "arch": "resnet8_w32",
            "resolution": 32,
            "crop_ratio": 1.0,
            "epochs": self.config.epochs,
            "batch_size": 32,
            "lr": 0.1,
            "min_scale": 0.5,
            "flip": False,  # mirrored digits are other classes
            "num_workers": self.config.num_workers,
        }
        return pretrain.Config(**(settings | changes))

    def train_surrogate(self) -> dict[str, Any]:
        """Train a narrow network on the full source."""
        return pretrain.pretrain(
            self.pretraining(
                "surrogate", arch="resnet8_w16", epochs=self.config.surrogate_epochs, seed=1000
            )
        )

    # -- 3. scores and selections ----------------------------------------------------------------
    def score(self, surrogate: dict[str, Any]) -> dict[str, Any]:
        """Score by every method, save every selection, and return the seconds each one took."""
        checkpoint = Path(surrogate["checkpoint"])
        source = BetonIndex.open(self.data / "source_train.beton")
        target = BetonIndex.open(self.data / "target_train.beton")
        run = RunFolder(
            self.config.out / "scores",
            {
                "checkpoint_sha256": sha256_of_file(checkpoint),
                "source": source.fingerprint,
                "target": target.fingerprint,
                "keeps": self.config.keeps,
                "seeds": self.config.seeds,
            },
        )
        if finished := run.finished():
            print(f"{run.path}: finished before, reused")
            return finished
        run.start()
        warm_up_scoring()
        clock = Clock()
        on_target = clock("lm", "fm", call=partial(self.extract, target, checkpoint))
        on_source = clock("fm", call=partial(self.extract, source, checkpoint))
        num_classes = source.num_classes()
        scores = {
            "lm": clock("lm", call=partial(label_mapping, on_target.logits, num_classes)),
            "fm": clock("fm", call=partial(map_features, on_target, on_source)),
        }
        for seed in self.config.seeds:
            draw = partial(random_scores, num_classes, seed=seed)
            scores[f"random_seed{seed}"] = clock("random", call=draw)
        for name, values in scores.items():
            values.save(run.path / f"{name}.npz")
            method, _, suffix = name.partition("_")
            for keep in self.config.keeps:
                selection = clock(method, call=partial(select, values, source, keep=keep))
                file_name = f"{method}_{keep:g}" + (f"_{suffix}" if suffix else "")
                selection.save(self.selection_path(file_name))
        clock.seconds["random"] /= len(self.config.seeds)  # each seed is a selection of its own
        return run.finish({"seconds": clock.seconds})

    def extract(self, index: BetonIndex, checkpoint: Path) -> Features:
        """Run the surrogate over a beton."""
        loader = evaluation_loader(
            index.path,
            batch_size=256,
            resolution=32,
            crop_ratio=1.0,
            num_workers=self.config.num_workers,
        )
        model = load_checkpoint(checkpoint)
        return extract_features(model, loader, loader.indices, checkpoint=checkpoint)

    # -- 4. pretraining and finetuning -----------------------------------------------------------
    def plan(self) -> list[Run]:
        """Return every pretraining run: full, each method and keep, and the control."""
        runs = []
        for seed in self.config.seeds:
            runs.append(Run("full", 1.0, "equal_epochs", seed))
            for method in METHODS:
                runs += [Run(method, keep, "equal_epochs", seed) for keep in self.config.keeps]
                runs.append(Run(method, self.config.control_keep, "equal_iterations", seed))
        return runs

    def train(self, run: Run, full_steps: int | None) -> dict[str, Any]:
        """Pretrain and finetune once; return what was measured."""
        selection = self.selection_path(run.selection) if run.selection else None
        control = run.budget == "equal_iterations"
        pretrained = pretrain.pretrain(
            self.pretraining(
                run.name,
                selection=selection,
                seed=run.seed,
                iterations=full_steps if control else None,
            )
        )
        shared: dict[str, Any] = {
            "checkpoint": Path(pretrained["checkpoint"]),
            **{name: self.data / f"target_{name}.beton" for name in ("train", "val", "test")},
            "resolution": 32,
            "crop_ratio": 1.0,
            "min_scale": 0.5,
            "flip": False,
            "seed": run.seed,
            "num_workers": self.config.num_workers,
        }
        folder = self.config.out / "finetune" / run.name
        probe = finetune.Config(
            **shared,
            run=folder / "linear_probe",
            mode="linear_probe",
            epochs=self.config.probe_epochs,
            batch_size=64,
            lr=1e-2,
        )
        full = finetune.Config(
            **shared,
            run=folder / "full_finetuning",
            mode="full_finetuning",
            epochs=self.config.finetune_epochs,
            batch_size=32,
            lr=2e-3,
        )
        accuracies = {part.mode: finetune.finetune(part)["test_accuracy"] for part in (probe, full)}
        return {**pretrained, "accuracies": accuracies, "selection": selection}


class Clock:
    """Seconds by method; work that two methods need counts for both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(METHODS, 0.0)

    def __call__(self, *methods: str, call: Callable[[], Any]) -> Any:
        """Run `call` and charge its seconds to `methods`."""
        started = time.perf_counter()
        result = call()
        for method in methods:
            self.seconds[method] += time.perf_counter() - started
        return result


def map_features(target: Features, source: Features) -> Scores:
    """Score by feature mapping over the source's labelled classes."""
    means = class_means(source.features, source.labels, source.logits.shape[1])
    return feature_mapping(target.features, means)


def warm_up_scoring() -> None:
    """Compile the kernels on two rows, so that compilation is not counted as selection."""
    rows = np.eye(2, dtype=np.float32)
    feature_mapping(rows, class_means(rows, [0, 1], 2))
    label_mapping(rows)


def summarise(
    runs: dict[Run, dict[str, Any]], selection_seconds: dict[str, float], surrogate_seconds: float
) -> list[dict[str, Any]]:
    """Return the rows of the result, one per method, keep, budget and finetuning."""
    relevant = digits.relevant_classes()
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for run, outcome in runs.items():
        groups.setdefault((run.method, run.keep, run.budget), []).append(outcome)
    full_seconds = mean(groups["full", 1.0, "equal_epochs"], "pretrain_seconds")
    rows = []
    for (method, keep, budget), outcomes in groups.items():
        seconds = mean(outcomes, "pretrain_seconds")
        cost = selection_seconds.get(method, 0.0)
        cost += surrogate_seconds if method in ("lm", "fm") else 0.0
        retained = [
            relevant[Selection.load(o["selection"]).classes] if o["selection"] else relevant
            for o in outcomes
        ]
        for finetuning in outcomes[0]["accuracies"]:
            accuracies = [outcome["accuracies"][finetuning] for outcome in outcomes]
            rows.append(
                {
                    "method": method,
                    "keep": keep,
                    "finetuning": finetuning,
                    "budget": budget,
                    "retained_classes": outcomes[0]["retained_classes"],
                    "retained_samples": outcomes[0]["retained_samples"],
                    "pretrain_steps": outcomes[0]["steps"],
                    "pretrain_seconds": seconds,
                    "selection_seconds": cost,
                    "speedup": full_seconds / seconds,
                    "speedup_with_selection": full_seconds / (seconds + cost),
                    "test_accuracy_mean": float(np.mean(accuracies)),
                    "test_accuracy_spread": float(np.std(accuracies, ddof=1))
                    if len(accuracies) > 1
                    else None,
                    "test_accuracies": accuracies,
                    "relevant_share": float(np.mean([part.mean() for part in retained])),
                    "relevant_found": float(
                        np.mean([part.sum() for part in retained]) / relevant.sum()
                    ),
                }
            )
    return rows


def mean(outcomes: list[dict[str, Any]], name: str) -> float:
    """Return the mean of a figure over seeds."""
    return float(np.mean([outcome[name] for outcome in outcomes]))


def contact_sheets(demo: Demo) -> list[ContactSheet]:
    """Return one picture of every class, kept and pruned, for LM and FM at the control's keep."""
    index = BetonIndex.open(demo.data / "source_train.beton")
    first = np.unique(index.labels(), return_index=True)[1]
    pictures = [
        (name, read_image(index, int(sample)))
        for name, sample in zip(digits.CLASS_NAMES["source"], first, strict=True)
    ]
    sheets = []
    for method in ("lm", "fm"):
        keep = demo.config.control_keep
        kept = set(Selection.load(demo.selection_path(f"{method}_{keep:g}")).classes.tolist())
        sheets.append(
            ContactSheet(
                title=f"{method}, keep {keep:g}",
                kept=[picture for c, picture in enumerate(pictures) if c in kept],
                pruned=[picture for c, picture in enumerate(pictures) if c not in kept],
            )
        )
    return sheets


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows that the report shows in full."""
    print(
        f"\n{'method':<8}{'keep':>6}  {'budget':<17}{'finetuning':<16}{'classes':>7}"
        f"{'seconds':>9}{'speed-up':>9}{'with cost':>10}{'accuracy':>16}{'relevant':>9}"
    )
    for row in sorted(rows, key=lambda row: (row["finetuning"], row["budget"], -row["keep"])):
        spread = row["test_accuracy_spread"]
        accuracy = f"{row['test_accuracy_mean']:.3f}" + (f" ± {spread:.3f}" if spread else "")
        print(
            f"{row['method']:<8}{row['keep']:>6g}  {row['budget']:<17}{row['finetuning']:<16}"
            f"{row['retained_classes']:>7}{row['pretrain_seconds']:>9.1f}{row['speedup']:>9.2f}"
            f"{row['speedup_with_selection']:>10.2f}{accuracy:>16}{row['relevant_share']:>9.2f}"
        )


def run_demo(config: Config) -> Path:
    """Run what is not finished yet and return the path of the report."""
    if config.control_keep not in config.keeps:
        raise ValueError(
            f"`control_keep` must be one of `keeps` {config.keeps}; got {config.control_keep}. "
            "Name one of them."
        )
    if config.fresh and config.out.exists():
        shutil.rmtree(config.out)
    demo = Demo(config)
    with demo.stage("1/5 write the source and the target"):
        demo.write_data()
    with demo.stage("2/5 train the surrogate"):
        surrogate = demo.train_surrogate()
    with demo.stage("3/5 score the source classes and select"):
        scoring = demo.score(surrogate)
    plan = demo.plan()
    outcomes: dict[Run, dict[str, Any]] = {}
    with demo.stage("4/5 pretrain and finetune"):
        for number, run in enumerate(plan, start=1):
            print(f"[{number}/{len(plan)}] {run.name}", flush=True)
            full = outcomes.get(Run("full", 1.0, "equal_epochs", run.seed))
            outcomes[run] = demo.train(run, full["steps"] if full else None)
    with demo.stage("5/5 report"):
        rows = summarise(outcomes, scoring["seconds"], surrogate["pretrain_seconds"])
        result = {
            "environment": environment(),
            "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
            "seeds": list(config.seeds),
            "rows": rows,
            "stages": demo.stages,
            "definitions": DEFINITIONS,
        }
        write_json(config.out / "result.json", result)
        relevant = digits.relevant_classes()
        report = write_report(
            result,
            config.out / "report.html",
            class_names=digits.CLASS_NAMES["source"],
            class_scores=[
                ClassScores(
                    method=method,
                    scores=Scores.load(config.out / "scores" / f"{method}.npz").scores,
                    relevant=relevant,
                )
                for method in ("lm", "fm")
            ],
            sheets=contact_sheets(demo),
        )
    print_table(rows)
    return report


if __name__ == "__main__":
    settings = tyro.cli(Config, description=__doc__)
    with one_line_errors("train.demo", debug="DP4TL_DEBUG" in os.environ):
        print(f"\n{run_demo(settings)}")
