"""Runs of the planted benchmark: pretrain on a selection, finetune on targets, keep the result."""

import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.rows import progress
from dp4tl_ffcv import BetonIndex, load_checkpoint
from dp4tl_ffcv.utils import replace_head, write_json
from train import finetune, pretrain
from train.components.processes import Processes
from train.components.session import Session

MODES = ("linear_probe", "full_finetuning")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings that all runs share."""

    data: Path
    """Folder of the betons."""
    arch: str = "resnet8_w16"
    resolution: int = 24
    epochs: int = 8
    batch_size: int = 32
    lr: float = 0.1
    probe_epochs: int = 50
    finetune_epochs: int = 10
    finetune_lr: float = 1e-3
    modes: tuple[str, ...] = MODES

    def facts(self) -> dict[str, Any]:
        """Return everything except the job that a run's result depends on."""
        betons = sorted(self.data.glob("*.beton"))
        return {**asdict(self), "data": {p.stem: BetonIndex.open(p).fingerprint for p in betons}}

    def pretraining(self, run: Path, **changes: Any) -> pretrain.Config:
        """Return the settings of a pretraining run."""
        settings: dict[str, Any] = {
            "train": self.data / "source_train.beton",
            "run": run,
            "arch": self.arch,
            "resolution": self.resolution,
            "crop_ratio": 1.0,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "min_scale": 0.5,
            "flip": False,  # mirrored digits are other classes
            "num_workers": 1,
        }
        return pretrain.Config(**(settings | changes))

    def finetuning(
        self, run: Path, checkpoint: Path, target: str, mode: Any, seed: int
    ) -> finetune.Config:
        """Return the settings of a finetuning run."""
        probe = mode == "linear_probe"
        splits: Any = {s: self.data / f"{target}_{s}.beton" for s in ("train", "val", "test")}
        return finetune.Config(
            checkpoint=checkpoint,
            **splits,
            run=run,
            mode=mode,
            resolution=self.resolution,
            crop_ratio=1.0,
            epochs=self.probe_epochs if probe else self.finetune_epochs,
            batch_size=64 if probe else 32,
            lr=1e-2 if probe else self.finetune_lr,
            min_scale=0.5,
            flip=False,
            seed=seed,
            num_workers=1,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One pretraining run and the finetuning runs that start from it."""

    selection: Path | None
    """None is the full source."""
    digest: str
    """Digest of the selection."""
    seed: int
    targets: tuple[str, ...]
    images: int
    """Number of retained samples, which sets how long the job takes."""

    def key(self, facts: dict[str, Any]) -> str:
        """Return the name of the result's file."""
        about = {**facts, "digest": self.digest, "seed": self.seed, "targets": sorted(self.targets)}
        return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def run_job(training: Training, job: Job) -> dict[str, Any]:
    """Pretrain and finetune. Return the test accuracies by target and mode."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        pretrained = pretrain.pretrain(
            training.pretraining(Path(folder) / "pretrain", selection=job.selection, seed=job.seed)
        )
        accuracies: dict[str, dict[str, float]] = {}
        for target in job.targets:
            for mode in training.modes:
                config = training.finetuning(
                    Path(folder) / target / mode,
                    Path(pretrained["checkpoint"]),
                    target,
                    mode,
                    job.seed,
                )
                result = finetune.finetune(config)
                accuracies.setdefault(target, {})[mode] = result["test_accuracy"]
    names = ("retained_classes", "retained_samples", "steps", "pretrain_seconds")
    return {**{name: pretrained[name] for name in names}, "accuracies": accuracies}


def influence_run(training: Training, job: Job) -> dict[str, Any]:
    """Pretrain and probe. Return which validation images of each target are right."""
    hits: dict[str, list[int]] = {}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        pretrained = pretrain.pretrain(
            training.pretraining(Path(folder) / "pretrain", selection=job.selection, seed=job.seed)
        )
        device = torch.device("cpu")
        for target in job.targets:
            path, checkpoint = Path(folder) / target, Path(pretrained["checkpoint"])
            config = training.finetuning(path, checkpoint, target, "linear_probe", job.seed)
            splits = {name: BetonIndex.open(getattr(config, name)) for name in ("train", "val")}
            session = Session("finetune", config, Processes(device), {})
            session.start()
            torch.manual_seed(job.seed)
            model = replace_head(load_checkpoint(checkpoint), splits["train"].num_classes)
            finetune.train_probe(model, splits, session, config)
            val = finetune.evaluation(splits["val"], config)
            features, labels = finetune.frozen_features(model, val, device)
            right = model.head(features).argmax(1) == labels
            hits[target] = right.int().tolist()
    return {"hits": hits, "pretrain_seconds": pretrained["pretrain_seconds"]}


def run_all(
    call: Callable[[Training, Job], dict[str, Any]],
    training: Training,
    jobs: Sequence[Job],
    folder: Path,
    processes: int,
    name: str,
) -> list[dict[str, Any]]:
    """Run the jobs without a result in `folder`, several at a time. Return all results."""
    facts = training.facts()
    paths = [folder / f"{job.key(facts)}.json" for job in jobs]
    todo = [(job, path) for job, path in zip(jobs, paths, strict=True) if not path.exists()]
    images = sum(job.images for job, _ in todo) * training.epochs
    progress(
        f"{name}: {len(jobs)} runs, {len(jobs) - len(todo)} finished before, {images:,} images"
    )
    started, done, last = time.perf_counter(), 0, 0.0
    for number, (job, path, result) in enumerate(_results(call, training, todo, processes), 1):
        write_json(path, result)
        done += job.images * training.epochs
        spent = time.perf_counter() - started
        if spent - last > 10 or number == len(todo):
            last = spent
            left = spent * (images - done) / done
            progress(f"{name}: {number}/{len(todo)} runs, {spent:.0f} s, {left:.0f} s left")
    return [json.loads(path.read_text()) for path in paths]


def influences_of(results: Sequence[dict[str, Any]], target: str) -> NDArray[np.float64]:
    """Return the outcomes `(R, n)` of influence runs for a target."""
    return np.array([result["hits"][target] for result in results], dtype=np.float64)


def _results(
    call: Callable[[Training, Job], dict[str, Any]],
    training: Training,
    todo: Sequence[tuple[Job, Path]],
    processes: int,
) -> Iterator[tuple[Job, Path, dict[str, Any]]]:
    if processes == 1 or not todo:
        for job, path in todo:
            yield job, path, call(training, job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=one_thread) as pool:
        futures = {pool.submit(call, training, job): (job, path) for job, path in todo}
        try:
            for future in as_completed(futures):
                yield *futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def one_thread() -> None:
    """Compute on one core: for small networks, a process per run is faster than threads."""
    torch.set_num_threads(1)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the recipes' progress off the terminal."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
