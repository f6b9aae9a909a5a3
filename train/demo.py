"""Show the whole path on real images: write, score, select, pretrain, finetune, compare.

    dp4tl demo            # or, in a clone: make demo

The target has ten classes of handwritten digits, which resemble ten of the source's eighty classes
(see `dp4tl write digits --help`). The scoring methods must find those ten. The demo prints a table
and writes `result.json` and `report.html`. Running it again reuses all finished stages.
"""

import tyro

from dp4tl_ffcv.utils import one_line_errors

from .configs.demo import Config

if __name__ == "__main__":  # before the imports below, which take seconds
    arguments = tyro.cli(Config, description=__doc__)

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dp4tl_ffcv import (
    BetonIndex,
    Scores,
    extract_features,
    feature_mapping,
    label_mapping,
    select,
    write_report,
)
from dp4tl_ffcv.scoring import random_scores
from dp4tl_ffcv.utils import RunFolder, environment, sha256_of_file, write_json
from dp4tl_ffcv.writers import digits

from . import finetune, pretrain
from .components import demo_runs
from .components.demo_runs import MAPPINGS, METHODS, Run, plan
from .configs.finetune import Config as FinetuneConfig
from .configs.pretrain import Config as PretrainConfig


@dataclass
class Demo:
    """The stages of the demo, and their seconds."""

    config: Config
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """Folder of the betons."""
        return self.config.out / "data"

    def selection_path(self, name: str) -> Path:
        """Return the file of a selection."""
        return self.config.out / "selections" / f"{name}.npz"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print the name of a stage, and add its seconds to those of earlier runs."""
        print(f"-- {name}", flush=True)
        path = self.config.out / "stages.json"
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = json.loads(path.read_text()) if path.exists() else {}
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            write_json(path, self.seconds)

    # -- 1. data ---------------------------------------------------------------------------------
    def write_data(self) -> None:
        """Write the six betons, or reuse them."""
        settings = digits.Config(out=self.data, variants=self.config.variants)
        facts = {"writer": "digits", "variants": settings.variants}
        run = RunFolder(self.data, facts, overwrite=True)
        finished = run.finished()
        if finished and finished["fingerprints"] == fingerprints(self.data):
            print(f"{self.data}: finished before, reused")
            return
        run.start()
        digits.write(settings)
        run.finish({"fingerprints": fingerprints(self.data)})

    # -- 2. surrogate ----------------------------------------------------------------------------
    def pretraining(self, name: str, **changes: Any) -> PretrainConfig:
        """Return the settings of a pretraining: the common settings, and `changes`."""
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
            "overwrite": True,
        }
        return PretrainConfig(**(settings | changes))

    def train_surrogate(self) -> dict[str, Any]:
        """Train a narrow network on the full source."""
        return pretrain.pretrain(
            self.pretraining(
                "surrogate", arch="resnet8_w16", epochs=self.config.surrogate_epochs, seed=1000
            )
        )

    # -- 3. scores and selections ----------------------------------------------------------------
    def score(self, surrogate: dict[str, Any]) -> dict[str, float]:
        """Score by every method, save every selection, and return the seconds of each method."""
        checkpoint = Path(surrogate["checkpoint"])
        index = BetonIndex.open(self.data / "source_train.beton")
        run = RunFolder(
            self.config.out / "scores",
            {
                "checkpoint_sha256": sha256_of_file(checkpoint),
                "betons": fingerprints(self.data),
                "keeps": self.config.keeps,
                "seeds": self.config.seeds,
            },
            overwrite=True,
        )
        names = {r.selection for r in plan(self.config) if r.selection}
        finished = run.finished()
        if finished and all(self.selection_path(name).exists() for name in names):
            print(f"{run.path}: finished before, reused")
            return dict(finished["seconds"])
        run.start()

        # The time includes writing the files, as on the command line.
        def features(split: str) -> Path:
            out = run.path / split
            extract_features(
                checkpoint,
                self.data / f"{split}.beton",
                out,
                resolution=32,
                crop_ratio=1.0,
                num_workers=self.config.num_workers,
                restart=True,
            )
            return out

        # Other images first, so that compilation does not count as selection.
        warm = features("target_val")
        feature_mapping(warm, warm)

        started = time.perf_counter()
        label_mapping(features("target_train")).save(run.path / "label_mapping.npz")
        seconds = {"label_mapping": time.perf_counter() - started}
        started = time.perf_counter()
        scores = feature_mapping(features("target_train"), features("source_train"))
        scores.save(run.path / "feature_mapping.npz")
        seconds["feature_mapping"] = time.perf_counter() - started
        started = time.perf_counter()
        for seed in self.config.seeds:
            random_scores(index, seed=seed).save(run.path / f"random_seed{seed}.npz")
        seconds["random"] = (time.perf_counter() - started) / len(self.config.seeds)

        for method, spent in self.select(index, run.path).items():
            seconds[method] += spent
        for method in MAPPINGS:
            seconds[method] += surrogate["pretrain_seconds"]
        run.finish({"seconds": seconds})
        return seconds

    def select(self, index: BetonIndex, scores: Path) -> dict[str, float]:
        """Save every selection, and return the mean seconds per selection, by method."""
        spent: dict[str, list[float]] = {method: [] for method in METHODS}
        for run in plan(self.config):
            if run.selection and run.budget == "equal_epochs":
                started = time.perf_counter()
                selection = select(Scores.load(scores / f"{run.scores}.npz"), index, keep=run.keep)
                selection.save(self.selection_path(run.selection))
                spent[run.method].append(time.perf_counter() - started)
        return {method: float(np.mean(times)) for method, times in spent.items()}

    # -- 4. pretraining and finetuning -----------------------------------------------------------
    def full_steps(self) -> int:
        """Return the number of steps of the full run."""
        settings = self.pretraining("full")
        num_samples = BetonIndex.open(settings.train).num_samples
        return settings.epochs * (num_samples // settings.batch_size)

    def train(self, run: Run) -> dict[str, Any]:
        """Pretrain and finetune once, and return the measurements."""
        selection = self.selection_path(run.selection) if run.selection else None
        pretrained = pretrain.pretrain(
            self.pretraining(
                run.name,
                selection=selection,
                seed=run.seed,
                iterations=self.full_steps() if run.budget == "equal_iterations" else None,
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
            "overwrite": True,
        }
        modes: dict[Any, dict[str, Any]] = {
            "linear_probe": {"epochs": self.config.probe_epochs, "batch_size": 64, "lr": 1e-2},
            "full_finetuning": {
                "epochs": self.config.finetune_epochs, "batch_size": 32, "lr": 2e-3,
            },
        }  # fmt: skip
        accuracies: dict[str, float] = {}
        for mode, settings in modes.items():
            out = self.config.out / "finetune" / run.name / mode
            tuned = finetune.finetune(FinetuneConfig(**shared, **settings, run=out, mode=mode))
            accuracies[mode] = tuned["test_accuracy"]
        return {**pretrained, "accuracies": accuracies, "selection": selection}


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the fingerprint of every beton in a folder, by name."""
    return {path.stem: BetonIndex.open(path).fingerprint for path in folder.glob("*.beton")}


def start_over(out: Path) -> None:
    """Delete the files of earlier runs of the demo, and nothing else."""
    for name in ("data", "pretrain", "scores", "selections", "finetune", "figures"):
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in ("result.json", "report.html", "stages.json"):
        (out / name).unlink(missing_ok=True)


def run_demo(config: Config) -> Path:
    """Run the unfinished stages and return the path of the report."""
    if config.fresh:
        start_over(config.out)
    demo = Demo(config)
    with demo.stage("1/5 write the source and the target"):
        demo.write_data()
    with demo.stage("2/5 train the surrogate"):
        surrogate = demo.train_surrogate()
    with demo.stage("3/5 score the source classes and select"):
        selection_seconds = demo.score(surrogate)
    runs = plan(config)
    outcomes: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    with demo.stage("4/5 pretrain and finetune"):
        for number, run in enumerate(runs, start=1):
            print(f"[{number}/{len(runs)}] {run.name}", flush=True)
            outcomes.setdefault((run.method, run.keep, run.budget), []).append(demo.train(run))
    print("-- 5/5 report", flush=True)
    relevant = digits.relevant_classes()
    rows = demo_runs.summarise(outcomes, selection_seconds, relevant)
    result = {
        "environment": environment(),
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "fresh")},
        "seeds": list(config.seeds),
        "rows": rows,
        "stages": [{"stage": k, "seconds": v} for k, v in demo.seconds.items()],
        "definitions": demo_runs.DEFINITIONS,
        "warning": demo_runs.uneven_rates(outcomes),
        "classes": {  # shown by the report
            "source": "data/source_train.beton",
            "relevant": np.flatnonzero(relevant).tolist(),
            "scores": {method: f"scores/{method}.npz" for method in MAPPINGS},
            "selections": {
                f"{method}, keep {config.control_keep:g}": (
                    f"selections/{method}_{config.control_keep:g}.npz"
                )
                for method in MAPPINGS
            },
        },
    }
    write_json(config.out / "result.json", result)
    report = write_report(config.out)
    demo_runs.print_table(rows)
    if result["warning"]:
        print(f"\nNote: {result['warning']}.")
    return report


if __name__ == "__main__":
    with one_line_errors(arguments):
        print(f"\n{run_demo(arguments)}")
