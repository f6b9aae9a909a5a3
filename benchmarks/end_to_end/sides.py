"""The sides of the end-to-end benchmark, and the process that trains.

All sides run the recipe's own step (`train.pretrain.train_step`), and the recipe's `Throughput`
measures how long the step waits for the loader. The sides differ in loader and file. Stock ffcv and
`PrunedLoader` train in different processes, so that neither profits from what the other compiled.
"""

import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ffcv.transforms import ToDevice
from numpy.typing import NDArray
from torch import Tensor

import dp4tl_ffcv
from benchmarks.harness.dataset import retain
from benchmarks.harness.loaders import open_loader
from benchmarks.harness.memory import drop_from_cache, read_so_far
from benchmarks.harness.timing import Stopwatch, Timing
from dp4tl_ffcv.loading.ffcv_adapter import iterator
from dp4tl_ffcv.utils import Classifier
from train.components.data import open_source
from train.components.processes import Processes
from train.components.throughput import Throughput
from train.configs.pretrain import Config
from train.pretrain import make_model, set_up, train_step

LR = 0.01  # small enough for a finite loss; accuracy does not matter
SYNTHETIC_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured, and the network that every side trains."""

    arch: str = "resnet8_w16"
    resolution: int
    """Side of the training crops in pixels."""
    batch_size: int
    num_classes: int = 100
    samples: int
    """Images of 400 pixels in the full source, a multiple of the batch size."""
    keeps: tuple[float, ...]
    """Fractions of the classes to retain."""
    warm: int
    """Rounds with the files in the page cache."""
    cold: int
    """Rounds with each file dropped from the page cache before its epoch."""
    device: str = "cpu"
    limit: bool = False
    """Also measure the rate of the device without loading, and the cost of the buffers' guard."""
    full: bool = True
    """Also train on the full source, and with stock ffcv on the compacted file."""


def retain_batches(beton: dp4tl_ffcv.BetonIndex, keep: float, batch_size: int) -> NDArray[np.int64]:
    """Return the sample ids of a random fraction `keep` of the classes, cut to whole batches.

    A short last batch costs more per image, above all where few samples are retained, and a GPU
    tunes its kernels again for it.
    """
    ids = retain(beton.labels(), keep)
    return ids[: len(ids) // batch_size * batch_size]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to feed the training."""

    how: str
    """Name in the results."""
    keep: float = 1.0
    beton: Path | None = None
    """File to read. None repeats one batch of random pixels, without a loader."""
    indices: bool = False
    """Select the retained samples by their ids: the file holds the full source."""
    stock: bool = False
    """Read with stock ffcv's Loader instead of PrunedLoader."""
    guarded: bool = True
    """Wait until the GPU has copied a pinned buffer before it is written again."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    timing: Timing
    images: int
    waited: float
    """Seconds in which the step waited for a batch."""
    read: int
    """Bytes read by system calls."""

    @property
    def seconds(self) -> float:
        return self.timing.wall


class Trainer:
    """A network, and loaders of one library.

    Args:
        scale: the network to train, and its device.
        source: beton of the full source.
        cold: drop the file from the page cache before each epoch, and read ahead the samples of the
            coming batches (stock: their pages), as for files larger than memory.
    """

    def __init__(self, scale: Scale, source: Path, cold: bool) -> None:
        self.scale, self.cold, self.device = scale, cold, torch.device(scale.device)
        self.loaders: dict[Side, Any] = {}
        config = Config(
            train=source,
            run=source.parent,  # nothing is written
            arch=scale.arch,
            resolution=scale.resolution,
            batch_size=scale.batch_size,
            lr=LR,
            schedule="constant",
            warmup=0.0,
        )
        self.state = set_up(
            config, open_source(source, None), Processes(self.device), scratch=source.parent
        )

    def open(self, side: Side) -> None:
        """Build the loader of a side, and train one batch."""
        self.loaders[side] = self._loader(side)
        self._train(self.loaders[side], num_steps=1)

    def epoch(self, side: Side) -> Epoch:
        loader = self.loaders[side]
        if self.cold and side.beton is not None:
            drop_from_cache(side.beton)
        read = read_so_far()
        with nullcontext() if side.guarded else unguarded(), Stopwatch() as watch:
            images, waited = self._train(loader, len(loader))
        read = read_so_far() - read
        return Epoch(timing=watch.timing, images=images, waited=waited, read=read)

    def _train(self, loader: Any, num_steps: int) -> tuple[int, float]:
        """Train `num_steps` steps. Return images and seconds of waiting."""
        state = replace(self.state, loader=loader)
        state.model.train()
        throughput, images = Throughput(self.device, quiet=True), 0
        losses = torch.zeros((), device=self.device)
        for step, (pixels, labels) in enumerate(
            throughput.batches(loader, num_steps, self.scale.batch_size)
        ):
            losses += train_step(state, pixels, labels, step)
            images += len(pixels)
        if not math.isfinite(losses.item()):  # waits for the device
            raise RuntimeError("the loss is not finite")
        return images, throughput.stalled

    def _loader(self, side: Side) -> Any:
        scale = self.scale
        if side.beton is None:
            return synthetic(scale, self.device)
        move = [] if self.device.type == "cpu" else [ToDevice(self.device, non_blocking=True)]
        options: dict[str, Any] = {"batch_size": scale.batch_size}
        if side.indices:
            index = dp4tl_ffcv.BetonIndex.open(side.beton)
            options["indices"] = retain_batches(index, side.keep, scale.batch_size)
        return open_loader(
            side.beton,
            stock=side.stock,
            order="random",
            from_disk=self.cold,
            resolution=scale.resolution,
            flip=True,
            move=move,
            **options,
        )

    # -- the cost of selection ---------------------------------------------------------------------
    def select(self, method: str, source: Path, target: Path, keep: float) -> float:
        """Select classes by LM or FM, and return the seconds from betons to a `Selection`.

        The surrogate has the network's architecture and random weights, which do not change the
        cost.
        """
        config = self.state.config
        surrogate = make_model(config, open_source(config.beton("train"), None), self.state.group)
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            seen = self._features(surrogate, target, Path(folder) / "target")
            if method == "label_mapping":
                scores = dp4tl_ffcv.label_mapping(seen)
            else:
                known = self._features(surrogate, source, Path(folder) / "source")
                scores = dp4tl_ffcv.feature_mapping(seen, known)
            dp4tl_ffcv.select(scores, source, keep=keep)
            return time.perf_counter() - started

    def _features(self, surrogate: Classifier, beton: Path, out: Path) -> Any:
        return dp4tl_ffcv.extract_features(
            surrogate, beton, out, resolution=self.scale.resolution, device=self.device
        )


class _NoEvent:
    """A CUDA event for which nobody waits."""

    def synchronize(self) -> None: ...


def unguarded() -> AbstractContextManager[Any]:
    """Return a context in which loaders write buffers that the GPU may still read."""
    return patch.object(iterator, "_event_on", lambda _: _NoEvent())


def synthetic(scale: Scale, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return one batch of random pixels, repeated: the rate of the device without loading."""
    shape = (scale.batch_size, 3, scale.resolution, scale.resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.arange(scale.batch_size, device=device) % scale.num_classes
    return [(images.to(memory_format=torch.channels_last).to(device), labels)] * SYNTHETIC_STEPS


def fill_page_cache(paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
