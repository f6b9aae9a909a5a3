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

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
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
from dp4tl_ffcv.utils import RunFolder, environment, read_json, sha256_of_file, write_json
from dp4tl_ffcv.writers import digits

from . import finetune, pretrain
from .components import demo_runs
from .components.demo_runs import FULL, MAPPINGS, Outcomes, Run, plan
from .configs.finetune import Config as FinetuneConfig
from .configs.pretrain import Config as PretrainConfig

IMAGES: dict[str, Any] = {"resolution": 32, "crop_ratio": 1.0}
TRAINING: dict[str, Any] = {
    **IMAGES,
    "min_scale": 0.5,
    "flip": False,  # mirrored digits are other classes
    "overwrite": True,
}


def run_demo(config: Config) -> Path:
    """Run the unfinished stages and return the path of the report."""
    out = config.out
    if config.fresh:
        start_over(out)
    with stage(out, "1/5 write the source and the target"):
        digits.write(digits.Config(out=out / "data", variants=config.variants))
    with stage(out, "2/5 train the surrogate"):
        changes = {"arch": "resnet8_w16", "epochs": config.surrogate_epochs, "seed": 1000}
        surrogate = pretrain.pretrain(pretraining(config, "surrogate", **changes))
    with stage(out, "3/5 score the source classes and select"):
        selection_seconds = score_and_select(config, surrogate)
    with stage(out, "4/5 pretrain and finetune"):
        outcomes = train(config)
    print("-- 5/5 report", flush=True)
    relevant = digits.relevant_classes()
    rows = demo_runs.summarise(outcomes, selection_seconds, relevant)
    keep = f"{config.control_keep:g}"
    result = {
        "environment": environment(),
        "config": {k: v for k, v in asdict(config).items() if k not in ("out", "fresh")},
        "seeds": list(config.seeds),
        "rows": rows,
        "stages": [{"stage": k, "seconds": v} for k, v in seconds_of_stages(out).items()],
        "definitions": demo_runs.DEFINITIONS,
        "warning": demo_runs.uneven_rates(outcomes),
        "classes": {  # shown by the report
            "source": "data/source_train.beton",
            "relevant": np.flatnonzero(relevant).tolist(),
            "scores": {method: f"scores/{method}.npz" for method in MAPPINGS},
            "selections": {
                f"{method}, keep {keep}": f"selections/{method}_{keep}.npz" for method in MAPPINGS
            },
        },
    }
    write_json(out / "result.json", result)
    report = write_report(out)
    demo_runs.print_table(rows)
    if result["warning"]:
        print(f"\nNote: {result['warning']}.")
    return report


def pretraining(config: Config, name: str, **changes: Any) -> PretrainConfig:
    """Return the settings of a pretraining run: the common settings, and `changes`."""
    settings: dict[str, Any] = {
        **TRAINING,
        "train": config.out / "data" / "source_train.beton",
        "val": config.out / "data" / "source_val.beton",
        "run": config.out / "pretrain" / name,
        "arch": "resnet8_w32",
        "epochs": config.epochs,
        "batch_size": 32,
        "lr": 0.1,
        "num_workers": config.num_workers,
    }
    return PretrainConfig(**(settings | changes))


def score_and_select(config: Config, surrogate: dict[str, Any]) -> dict[str, float]:
    """Save the scores and selections of every method, and return the seconds of a selection.

    The seconds include the training of the surrogate where a method needs one, and writing the
    files, as on the command line.
    """
    data, checkpoint = config.out / "data", Path(surrogate["checkpoint"])
    facts = {
        "checkpoint_sha256": sha256_of_file(checkpoint),
        "betons": {path.stem: BetonIndex.open(path).fingerprint for path in data.glob("*.beton")},
        "keeps": config.keeps,
        "seeds": config.seeds,
    }
    run = RunFolder(config.out / "scores", facts, overwrite=True)
    names = {each.selection for each in plan(config) if each.selection}
    complete = all((config.out / "selections" / f"{name}.npz").exists() for name in names)
    if complete and (finished := run.finished()):
        print(f"{run.path}: finished before, reused")
        return dict(finished["seconds"])
    run.start()
    index = BetonIndex.open(data / "source_train.beton")

    def features(split: str) -> Path:
        out, options = run.path / split, {**IMAGES, "num_workers": config.num_workers}
        extract_features(checkpoint, data / f"{split}.beton", out, **options, restart=True)
        return out

    # Other images first, so that compilation does not count as selection.
    warm = features("target_val")
    feature_mapping(warm, warm)

    def timed(make: Callable[[], Scores], name: str) -> float:
        started = time.perf_counter()
        scores = make()
        scores.save(run.path / f"{name}.npz")
        scored = time.perf_counter()
        for keep in config.keeps:
            selection = select(scores, index, keep=keep)
            selection.save(config.out / "selections" / f"{name}_{keep:g}.npz")
        return scored - started + (time.perf_counter() - scored) / len(config.keeps)

    seconds = {
        "label_mapping": timed(lambda: label_mapping(features("target_train")), "label_mapping"),
        "feature_mapping": timed(
            lambda: feature_mapping(features("target_train"), features("source_train")),
            "feature_mapping",
        ),
    }
    for method in MAPPINGS:
        seconds[method] += surrogate["pretrain_seconds"]
    by_seed = [
        timed(partial(random_scores, index, seed=seed), f"random_seed{seed}")
        for seed in config.seeds
    ]
    seconds["random"] = float(np.mean(by_seed))
    run.finish({"seconds": seconds})
    return seconds


def train(config: Config) -> Outcomes:
    """Pretrain and finetune every run of the plan."""
    runs = plan(config)
    outcomes: Outcomes = {}
    for number, run in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        iterations = outcomes[FULL][0]["steps"] if run.budget == "equal_iterations" else None
        outcomes.setdefault((run.method, run.keep, run.budget), []).append(
            pretrain_and_finetune(config, run, iterations)
        )
    return outcomes


def pretrain_and_finetune(config: Config, run: Run, iterations: int | None) -> dict[str, Any]:
    """Pretrain once, finetune twice, and return the measurements."""
    out = config.out
    selection = out / "selections" / f"{run.selection}.npz" if run.selection else None
    changes = {"selection": selection, "seed": run.seed, "iterations": iterations}
    pretrained = pretrain.pretrain(pretraining(config, run.name, **changes))
    modes: dict[Any, dict[str, Any]] = {
        "linear_probe": {"epochs": config.probe_epochs, "batch_size": 64, "lr": 1e-2},
        "full_finetuning": {"epochs": config.finetune_epochs, "batch_size": 32, "lr": 2e-3},
    }
    accuracies: dict[str, float] = {}
    for mode, settings in modes.items():
        finetuning = FinetuneConfig(
            checkpoint=Path(pretrained["checkpoint"]),
            train=out / "data" / "target_train.beton",
            val=out / "data" / "target_val.beton",
            test=out / "data" / "target_test.beton",
            run=out / "finetune" / run.name / mode,
            mode=mode,
            seed=run.seed,
            num_workers=config.num_workers,
            **TRAINING,
            **settings,
        )
        accuracies[mode] = finetune.finetune(finetuning)["test_accuracy"]
    return {**pretrained, "accuracies": accuracies, "selection": selection}


@contextmanager
def stage(out: Path, name: str) -> Iterator[None]:
    """Print the name of a stage, and add its seconds to the seconds of earlier runs."""
    print(f"-- {name}", flush=True)
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = seconds_of_stages(out)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        write_json(out / "stages.json", seconds)


def seconds_of_stages(out: Path) -> dict[str, float]:
    """Return the seconds of each stage so far."""
    path = out / "stages.json"
    try:
        return dict(read_json(path)) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged. Delete it.") from error


def start_over(out: Path) -> None:
    """Delete the files of earlier runs of the demo, and nothing else."""
    for name in ("data", "pretrain", "scores", "selections", "finetune", "figures"):
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in ("result.json", "report.html", "stages.json"):
        (out / name).unlink(missing_ok=True)


if __name__ == "__main__":
    with one_line_errors(arguments):
        print(f"\n{run_demo(arguments)}")
