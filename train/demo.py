"""The whole path on real images: betons, surrogate, scores, selections, pretraining, finetuning.

    python -m train.demo            # or: make demo

Which source classes does a target of ten handwritten digits need, out of eighty? The demo knows
(`writers.digits`), the methods do not; it ends with a table, `result.json` and `report.html`. A
second run takes over every stage that is finished; so does a run after Ctrl-C.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dp4tl_ffcv import BetonIndex, Scores, extract_features, select, write_report
from dp4tl_ffcv.scoring import score
from dp4tl_ffcv.utils import RunFolder, environment, one_line_errors, sha256_of_file, write_json
from dp4tl_ffcv.writers import digits

from . import finetune, pretrain
from .components.demo_results import DEFINITIONS, print_table, summarise, uneven_rates
from .configs.finetune import Config as FinetuneConfig
from .configs.pretrain import Config as PretrainConfig

METHODS = ("lm", "fm", "random")


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
    def scores(self) -> str:
        """Name of the scores file; random draws anew for every seed."""
        return f"random_seed{self.seed}" if self.method == "random" else self.method

    @property
    def selection(self) -> str | None:
        """Name of the selection file."""
        return None if self.method == "full" else f"{self.scores}_{self.keep:g}"


@dataclass
class Demo:
    """The stages, and what they cost."""

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
        """Announce a stage and add its seconds to those of earlier runs in this folder."""
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
        """Write the six betons unless they are there."""
        settings = digits.Config(out=self.data, variants=self.config.variants)
        config = {"writer": "digits", "variants": settings.variants}
        run = RunFolder(self.data, config, overwrite=True)
        finished = run.finished()
        if finished and finished["fingerprints"] == fingerprints(self.data):
            print(f"{self.data}: finished before, reused")
            return
        run.start()
        digits.write(settings)
        run.finish({"fingerprints": fingerprints(self.data)})

    # -- 2. surrogate ----------------------------------------------------------------------------
    def pretraining(self, name: str, **changes: Any) -> PretrainConfig:
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
        """Score by every method, save every selection, and return each method's seconds."""
        checkpoint = Path(surrogate["checkpoint"])
        source = self.data / "source_train.beton"
        index = BetonIndex.open(source)
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
        names = {r.selection for r in self.plan() if r.selection}
        finished = run.finished()
        if finished and all(self.selection_path(name).exists() for name in names):
            print(f"{run.path}: finished before, reused")
            return dict(finished["seconds"])
        run.start()

        # The steps are those of the command line, files included: that is what a user pays.
        def features(split: str) -> Path:
            out = run.path / split
            extract_features(
                checkpoint,
                self.data / f"{split}.beton",
                out,
                resolution=32,
                crop_ratio=1.0,
                num_workers=max(self.config.num_workers, 0) or None,
                restart=True,
            )
            return out

        # A first pass over other images, so that compilation is not counted as selection.
        warm = features("target_val")
        score("feature_mapping", target=warm, source=warm, out=run.path / "warm_up.npz")

        started = time.perf_counter()
        target = features("target_train")
        score("label_mapping", target=target, out=run.path / "lm.npz")
        seconds = {"lm": time.perf_counter() - started}
        started = time.perf_counter()
        score(
            "feature_mapping",
            target=features("target_train"),
            source=features("source_train"),
            out=run.path / "fm.npz",
        )
        seconds["fm"] = time.perf_counter() - started
        started = time.perf_counter()
        for seed in self.config.seeds:
            out = run.path / f"random_seed{seed}.npz"
            score("random", beton=source, seed=seed, out=out)
        seconds["random"] = (time.perf_counter() - started) / len(self.config.seeds)

        for method, spent in self.select(index, run.path).items():
            seconds[method] += spent
        for method in ("lm", "fm"):
            seconds[method] += surrogate["pretrain_seconds"]
        run.finish({"seconds": seconds})
        return seconds

    def select(self, index: BetonIndex, scores: Path) -> dict[str, float]:
        """Save every selection of the plan; return the mean seconds of one, by method."""
        spent: dict[str, list[float]] = {method: [] for method in METHODS}
        for run in self.plan():
            if run.selection and run.budget == "equal_epochs":
                started = time.perf_counter()
                selection = select(Scores.load(scores / f"{run.scores}.npz"), index, keep=run.keep)
                selection.save(self.selection_path(run.selection))
                spent[run.method].append(time.perf_counter() - started)
        return {method: float(np.mean(times)) for method, times in spent.items()}

    # -- 4. pretraining and finetuning -----------------------------------------------------------
    def plan(self) -> list[Run]:
        """Return every pretraining run: full, each method and keep, and the control.

        The full source comes first in one seed and last in the next, so that a machine that warms
        up or slows down favours neither side.
        """
        runs: list[Run] = []
        for position, seed in enumerate(self.config.seeds):
            turn = [Run("full", 1.0, "equal_epochs", seed)]
            for method in METHODS:
                turn += [Run(method, keep, "equal_epochs", seed) for keep in self.config.keeps]
                turn.append(Run(method, self.config.control_keep, "equal_iterations", seed))
            runs += turn if position % 2 == 0 else turn[::-1]
        return runs

    def full_steps(self) -> int:
        """Return how many steps the full run takes."""
        settings = self.pretraining("full")
        num_samples = BetonIndex.open(settings.train).num_samples
        return settings.epochs * (num_samples // settings.batch_size)

    def train(self, run: Run) -> dict[str, Any]:
        """Pretrain and finetune once; return what was measured."""
        selection = self.selection_path(run.selection) if run.selection else None
        control = run.budget == "equal_iterations"
        pretrained = pretrain.pretrain(
            self.pretraining(
                run.name,
                selection=selection,
                seed=run.seed,
                iterations=self.full_steps() if control else None,
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
        folder = self.config.out / "finetune" / run.name
        probe = FinetuneConfig(
            **shared,
            run=folder / "linear_probe",
            mode="linear_probe",
            epochs=self.config.probe_epochs,
            batch_size=64,
            lr=1e-2,
        )
        full = FinetuneConfig(
            **shared,
            run=folder / "full_finetuning",
            mode="full_finetuning",
            epochs=self.config.finetune_epochs,
            batch_size=32,
            lr=2e-3,
        )
        accuracies = {part.mode: finetune.finetune(part)["test_accuracy"] for part in (probe, full)}
        return {**pretrained, "accuracies": accuracies, "selection": selection}


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the fingerprint of every beton in a folder, by name."""
    return {path.stem: BetonIndex.open(path).fingerprint for path in folder.glob("*.beton")}


def start_over(out: Path) -> None:
    """Delete what the demo makes, and nothing else."""
    for name in ("data", "pretrain", "scores", "selections", "finetune", "figures"):
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in ("result.json", "report.html", "stages.json"):
        (out / name).unlink(missing_ok=True)


def run_demo(config: Config) -> Path:
    """Run what is not finished yet and return the path of the report."""
    if config.control_keep not in config.keeps:
        raise ValueError(
            f"`control_keep` must be one of `keeps` {config.keeps}; got {config.control_keep}. "
            "Name one of them."
        )
    if config.fresh:
        start_over(config.out)
    demo = Demo(config)
    with demo.stage("1/5 write the source and the target"):
        demo.write_data()
    with demo.stage("2/5 train the surrogate"):
        surrogate = demo.train_surrogate()
    with demo.stage("3/5 score the source classes and select"):
        selection_seconds = demo.score(surrogate)
    plan = demo.plan()
    outcomes: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    with demo.stage("4/5 pretrain and finetune"):
        for number, run in enumerate(plan, start=1):
            print(f"[{number}/{len(plan)}] {run.name}", flush=True)
            outcomes.setdefault((run.method, run.keep, run.budget), []).append(demo.train(run))
    print("-- 5/5 report", flush=True)
    relevant = digits.relevant_classes()
    rows = summarise(outcomes, selection_seconds, relevant)
    result = {
        "environment": environment(),
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "fresh")},
        "seeds": list(config.seeds),
        "rows": rows,
        "stages": [{"stage": k, "seconds": v} for k, v in demo.seconds.items()],
        "definitions": DEFINITIONS,
        "warning": uneven_rates(outcomes),
        "classes": {  # shown by the report
            "source": "data/source_train.beton",
            "relevant": np.flatnonzero(relevant).tolist(),
            "scores": {method: f"scores/{method}.npz" for method in ("lm", "fm")},
            "selections": {
                f"{method}, keep {config.control_keep:g}": (
                    f"selections/{method}_{config.control_keep:g}.npz"
                )
                for method in ("lm", "fm")
            },
        },
    }
    write_json(config.out / "result.json", result)
    report = write_report(config.out)
    print_table(rows)
    if result["warning"]:
        print(f"\nNote: {result['warning']}.")
    return report


if __name__ == "__main__":
    settings = tyro.cli(Config, description=__doc__)
    with one_line_errors("train.demo"):
        print(f"\n{run_demo(settings)}")
