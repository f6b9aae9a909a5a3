"""Sides, files and epochs that the figures of the end-to-end benchmark share."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.end_to_end.sides import (
    Epoch,
    Scale,
    Side,
    Trainer,
    fill_page_cache,
    retain_batches,
)
from benchmarks.harness.bench import BaseBench
from benchmarks.harness.dataset import Images, prepare
from benchmarks.harness.rows import Row, alternate, compare, progress
from benchmarks.harness.timing import Timing
from benchmarks.harness.worker import Worker
from dp4tl_ffcv import BetonIndex, compact

PRUNED, COMPACTED, RAW = "PrunedLoader", "compacted", "compacted, raw"
STOCK, STOCK_COMPACTED = "stock Loader, indices=", "stock Loader, compacted"
FULL, STOCK_FULL, SYNTHETIC = "PrunedLoader, full", "stock Loader, full", "synthetic"
UNGUARDED = "PrunedLoader, no guard"
FULLS = (FULL, STOCK_FULL)
METHODS = ("label_mapping", "feature_mapping")
DETAILS = ("arch", "keep", "how", "page_cache", "method")
# The side of stock ffcv that loads the same samples.
COUNTERPARTS = {FULL: STOCK_FULL, PRUNED: STOCK, COMPACTED: STOCK_COMPACTED, RAW: STOCK}
# The paper's largest target has 50,500 training images for ImageNet's 1,281,167.
TARGET_SHARE = 0.04


_on_cpu = partial(Scale, arch="resnet8_w16", batch_size=64)
CPU = (_on_cpu(resolution=64, samples=2560, keeps=(0.2, 0.4, 0.6), warm=5, cold=5),)
# Stock ffcv compiles every loader again, which takes most of the time of a cold round.
QUICK_CPU = (_on_cpu(resolution=32, samples=640, keeps=(0.4,), warm=5, cold=0),)
_on_gpu = partial(Scale, resolution=160, warm=5, device="cuda", limit=True)
GPU = (
    _on_gpu(arch="resnet18", batch_size=1024, samples=153_600, keeps=(0.2, 0.4, 0.6), cold=5),
    _on_gpu(arch="resnet50", batch_size=1024, samples=51_200, keeps=(0.2,), cold=0),
)
# `benchmarks/gpu.sh` runs these within minutes.
_in_minutes = partial(_on_gpu, batch_size=512, keeps=(0.2,), cold=0, full=False)
QUICK_GPU = (
    _in_minutes(arch="resnet18", samples=76_800),
    _in_minutes(arch="resnet50", samples=38_400),
)
# The same sides on the CPU, to try `benchmarks/gpu.sh` without a GPU.
DRY_RUN = tuple(
    replace(
        scale, arch="resnet8_w16", resolution=32, batch_size=16, samples=640, device="cpu", warm=1
    )
    for scale in QUICK_GPU
)
ON_GPU = torch.cuda.is_available()
SCALES, QUICK = (GPU, QUICK_GPU) if ON_GPU else (CPU, QUICK_CPU)
if os.environ.get("DP4TL_DRY_RUN"):
    SCALES = QUICK = DRY_RUN
RESULTS = "end_to_end_gpu.jsonl" if ON_GPU else "end_to_end.jsonl"

Epochs = dict[Side, list[Epoch]]


class Bench(BaseBench[Scale]):
    @cached_property
    def source(self) -> Path:
        return prepare(self._images(self.scale.samples), self.data)

    @cached_property
    def target(self) -> Path:
        """Beton of a target, relative to the source as large as the paper's largest target."""
        return prepare(self._images(round(TARGET_SHARE * self.scale.samples)), self.data)

    @cached_property
    def index(self) -> BetonIndex:
        return BetonIndex.open(self.source)

    @cached_property
    def compacted(self) -> dict[tuple[str, float], tuple[Path, float]]:
        """Compacted files and the seconds to write them, by `how` and keep."""
        least = min(self.scale.keeps)
        whole = self.source.stat().st_size
        return {
            **{(COMPACTED, keep): self._compact(keep) for keep in self.scale.keeps},
            # Decoded images take the space that pruned images took.
            (RAW, least): self._compact(least, raw_budget=whole),
        }

    @cached_property
    def sides(self) -> list[Side]:
        """All sides. The full source comes first."""
        sides = []
        if self.scale.full:
            sides = [Side(how=how, beton=self.source, stock=how == STOCK_FULL) for how in FULLS]
        for keep in self.scale.keeps:
            retained = partial(Side, keep=keep, beton=self.source, indices=True)
            sides += [retained(how=PRUNED), retained(how=STOCK, stock=True)]
            if self.scale.limit:
                sides.append(retained(how=UNGUARDED, guarded=False))
        for (how, keep), (path, _) in self.compacted.items():
            sides.append(Side(how=how, keep=keep, beton=path))
            if how == COMPACTED and self.scale.full:
                sides.append(Side(how=STOCK_COMPACTED, keep=keep, beton=path, stock=True))
        return [*sides, Side(how=SYNTHETIC)] if self.scale.limit else sides

    @cached_property
    def epochs(self) -> dict[str, Epochs]:
        """Epochs of all sides, by page cache (cold, warm)."""
        return {
            name: self._alternate(cold=name == "cold", rounds=rounds)
            for name, rounds in (("cold", self.scale.cold), ("warm", self.scale.warm))
            if rounds
        }

    @cached_property
    def selection_seconds(self) -> dict[str, float]:
        """Seconds from betons to a `Selection`, by method."""
        with self._trainer(cold=False) as worker:
            select = partial(worker.call, "select")
            keep = min(self.scale.keeps)
            select(METHODS[1], self.target, self.target, keep)  # compiles
            return {
                method: median(
                    select(method, self.source, self.target, keep)
                    for _ in range(min(3, self.scale.warm))
                )
                for method in METHODS
            }

    def side(self, how: str, keep: float = 1.0) -> Side:
        (found,) = (side for side in self.sides if (side.how, side.keep) == (how, keep))
        return found

    def retained(self, keep: float) -> NDArray[np.int64]:
        """Return the sample ids of the classes that `keep` retains."""
        return retain_batches(self.index, keep, self.scale.batch_size)

    def share(self, keep: float) -> float:
        return len(self.retained(keep)) / self.index.num_samples

    def seconds(self, cache: str, side: Side) -> list[float]:
        return [epoch.seconds for epoch in self.epochs[cache][side]]

    def rates(self, cache: str, side: Side) -> list[Timing]:
        return [epoch.timing.rate(epoch.images) for epoch in self.epochs[cache][side]]

    def _alternate(self, *, cold: bool, rounds: int) -> Epochs:
        with self._trainer(cold=cold) as ours, self._trainer(cold=cold) as other:
            workers = {False: ours, True: other}
            for side in self.sides:
                workers[side.stock].call("open", side)
            calls = [partial(self._epoch, workers[side.stock], side) for side in self.sides]
            if not cold:
                fill_page_cache({side.beton for side in self.sides if side.beton})
            epochs = dict(zip(self.sides, alternate(*calls, rounds=rounds), strict=True))
        for side, made in epochs.items():
            expected = len(self.retained(side.keep))
            if side.beton and {epoch.images for epoch in made} != {expected}:
                raise RuntimeError(f"{side.how} did not train on {expected} images: {made}")
        return epochs

    def _epoch(self, worker: Worker, side: Side) -> Epoch:
        epoch: Epoch = worker.call("epoch", side)
        rate, waited = epoch.images / epoch.seconds, epoch.waited / epoch.seconds
        arch = self.scale.arch
        progress(f"    {arch}, {side.how}: {rate:,.0f} images/s, {waited:.1%} waiting")
        return epoch

    def _trainer(self, *, cold: bool) -> Worker:
        return Worker(Trainer, self.scale, self.source, cold)

    def _images(self, samples: int) -> Images:
        classes = self.scale.num_classes
        return Images(num_samples=samples, long_side=400, num_classes=classes)

    def _compact(self, keep: float, raw_budget: int | None = None) -> tuple[Path, float]:
        how = "jpg" if raw_budget is None else "raw"
        path = self.data / f"{self.source.stem}_compacted_{keep:g}_{how}.beton"
        ids = self.retained(keep)
        started = time.perf_counter()
        compact(self.source, ids, path, raw_budget=raw_budget)
        return path, time.perf_counter() - started

    def each_side(self) -> Iterator[tuple[str, Side]]:
        for cache, epochs in self.epochs.items():
            for side in epochs:
                if side.how not in (SYNTHETIC, UNGUARDED):
                    yield cache, side

    def against_stock(
        self, figure: str, unit: str, values: Callable[[str, Side], Sequence[Any]]
    ) -> list[Row]:
        """Compare each side of ours with stock ffcv on the same samples."""
        rows = []
        for cache, side in self.each_side():
            its_how = COUNTERPARTS.get(side.how)
            if its_how == STOCK_COMPACTED and not self.scale.full:
                its_how = STOCK
            if its_how:
                other = self.side(its_how, side.keep)
                its, ours = values(cache, other), values(cache, side)
                rows.append(self.row(figure, unit, cache, side, its, other.how, ours))
        return rows

    def against_ideal(
        self, cache: str, side: Side
    ) -> tuple[list[float], list[float], dict[str, Any]]:
        """Return seconds of epochs, the retained share of the full source's, and parameters."""
        share = self.share(side.keep)
        full = self.seconds(cache, self.side(STOCK_FULL if side.stock else FULL))
        ours = self.seconds(cache, side)
        speedup = median(whole / mine for whole, mine in zip(full, ours, strict=True))
        more = {"samples_kept": share, "speedup": speedup}
        return ours, [share * seconds for seconds in full], more

    def row(
        self,
        figure: str,
        unit: str,
        cache: str,
        side: Side,
        other: Sequence[Any],
        other_name: str,
        ours: Sequence[Any],
        **more: Any,
    ) -> Row:
        scale = self.scale
        params = {
            "how": side.how,
            "keep": side.keep,
            "page_cache": cache,
            "arch": scale.arch,
            "resolution": scale.resolution,
            "batch_size": scale.batch_size,
            "samples": scale.samples,
            "device": scale.device,
        }
        return compare(figure, unit, ours, other, other_name, **params, **more)
