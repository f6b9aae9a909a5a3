"""Runs of the planted benchmark: pretrain on a selection and finetune on targets."""

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.bench import CORES
from benchmarks.planted.variants import variants
from dp4tl_ffcv.utils import track
from train import finetune, pretrain
from writers import digits


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much to run, and the settings that all runs share."""

    folder: str = "planted"
    """Name of the folder of betons, scores and finished runs."""
    methods: tuple[str, ...] = tuple(variants())
    targets: tuple[str, ...] = tuple(digits.TARGETS)
    combined: bool = True
    """Also select for all targets at once."""
    keeps: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.9)
    seeds: tuple[int, ...] = (0, 1, 2)
    surrogate_epochs: int = 8
    influence_runs: int = 40
    influence_epochs: int = 4
    arch: str = "resnet8_w16"
    resolution: int = 24
    epochs: int = 8
    batch_size: int = 32
    lr: float = 0.1
    probe_epochs: int = 50
    finetune_epochs: int = 10
    finetune_lr: float = 1e-3
    modes: tuple[str, ...] = ("linear_probe", "full_finetuning")
    processes: int = CORES
    """Number of runs at a time, each on one core."""


@dataclass(frozen=True)
class Job:
    """One pretraining run and the finetuning runs that start from it."""

    selection: Path | None
    """None is the full source."""
    digest: str
    """Digest of the selection."""
    seed: int
    targets: tuple[str, ...]


def merge(jobs: Iterable[Job]) -> dict[tuple[str, int], Job]:
    """Return one job for each selection and seed, finetuned on all targets that need it."""
    found: dict[tuple[str, int], Job] = {}
    for job in jobs:
        before = found.setdefault((job.digest, job.seed), job)
        targets = tuple(sorted({*before.targets, *job.targets}))
        found[job.digest, job.seed] = replace(before, targets=targets)
    return found


@dataclass(frozen=True)
class Runs:
    """Runs with common settings. Their folders are kept: recipes do not repeat a finished run."""

    scale: Scale
    folder: Path

    def do_all(self, jobs: Sequence[Job], name: str) -> list[dict[str, Any]]:
        """Run the jobs, several at a time, and return their results."""
        shown = {"total": len(jobs), "description": name, "unit": "runs"}
        if self.scale.processes == 1:
            return list(track(map(self.do, jobs), **shown))
        context = get_context("spawn")
        with ProcessPoolExecutor(self.scale.processes, context, initializer=one_thread) as pool:
            return list(track(pool.map(self.do, jobs), **shown))

    def do(self, job: Job) -> dict[str, Any]:
        """Pretrain and finetune. Return the recipes' results, for finetuning by target and mode."""
        run = self.folder / "runs" / f"{job.digest[:24]}_{job.seed}"
        with quiet():
            config = self.pretraining(run / "pretrain", selection=job.selection, seed=job.seed)
            pretrained = pretrain.pretrain(config)
            tuned: dict[str, dict[str, Any]] = {target: {} for target in job.targets}
            for target, mode in product(job.targets, self.scale.modes):
                config = self.finetuning(run, target, mode, pretrained["checkpoint"], job.seed)
                tuned[target][mode] = finetune.finetune(config)
        return {"pretrained": pretrained, "tuned": tuned}

    def pretraining(self, run: Path, **changes: Any) -> pretrain.Config:
        settings: dict[str, Any] = {
            **self._common(run),
            "train": self.folder / "data" / "source_train.beton",
            "arch": self.scale.arch,
            "epochs": self.scale.epochs,
            "batch_size": self.scale.batch_size,
            "lr": self.scale.lr,
        }
        return pretrain.Config(**(settings | changes))

    def finetuning(
        self, run: Path, target: str, mode: Any, checkpoint: str, seed: int
    ) -> finetune.Config:
        probe = mode == "linear_probe"
        data = self.folder / "data"
        return finetune.Config(
            **self._common(run / target / mode),
            **{name: data / f"{target}_{name}.beton" for name in ("train", "val", "test")},
            checkpoint=Path(checkpoint),
            mode=mode,
            epochs=self.scale.probe_epochs if probe else self.scale.finetune_epochs,
            batch_size=64 if probe else 32,
            lr=1e-2 if probe else self.scale.finetune_lr,
            seed=seed,
        )

    def _common(self, run: Path) -> dict[str, Any]:
        return {
            "run": run,
            "resolution": self.scale.resolution,
            "crop_ratio": 1.0,
            "min_scale": 0.5,
            "flip": False,  # mirrored digits are other classes
            "num_workers": 1,
            "overwrite": True,
        }


def one_thread() -> None:
    """Compute on one core: for small networks, a process per run is faster than threads."""
    torch.set_num_threads(1)


@contextmanager
def quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
