"""What the end-to-end benchmark trains on, and the process that trains.

All sides make the recipe's own step (`train.pretrain.train_step`), and the recipe's `Throughput`
measures how long the step waits for the loader; the sides differ in the loader and the file. Stock
ffcv and `PrunedLoader` never share a process: ffcv edits type objects of numba's, which breaks
loaders built later.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage
from numpy.typing import NDArray
from torch import Tensor, nn

import dp4tl_ffcv
from benchmarks.harness.dataset import retain
from benchmarks.harness.memory import read_so_far
from train.components.data import open_source
from train.components.optimizers import make_optimizer
from train.components.precision import loss_scaler
from train.components.processes import Processes
from train.components.schedules import learning_rate
from train.components.throughput import Throughput
from train.configs.pretrain import Config
from train.pretrain import TrainState, make_model, train_step

SEED = 0
LR = 0.01  # what is learned does not matter, but it must stay finite
SYNTHETIC_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Network:
    """What every side trains, and how."""

    arch: str
    resolution: int
    """Side of the training crops in pixels."""
    batch_size: int
    num_classes: int = 100


def retain_batches(beton: dp4tl_ffcv.BetonIndex, keep: float, batch_size: int) -> NDArray[np.int64]:
    """Return the ids of random classes' samples, `keep` of all, cut to whole batches.

    A short last batch would cost more for each of its images, and on a GPU be tuned anew in the
    first epoch that is measured: both weigh most where little is retained.

    Raises:
        ValueError: they do not fill a batch.
    """
    ids = retain(beton.labels(), keep)
    whole = len(ids) // batch_size * batch_size
    if not whole:
        raise ValueError(
            f"`keep` must retain a batch of {batch_size} samples; got {keep}, which retains "
            f"{len(ids)}. Raise it."
        )
    return ids[:whole]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to feed the training."""

    how: str
    """What the results call it."""
    keep: float = 1.0
    """Share of the classes that is trained on."""
    beton: Path | None = None
    """File to read; None feeds the same random pixels again and again, without a loader."""
    indices: bool = False
    """The file holds the full source: retain the samples by their ids."""
    stock: bool = False
    """Read by the released ffcv's Loader, else by PrunedLoader."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch of one side took."""

    seconds: float
    images: int
    waited: float
    """Seconds in which the step had nothing to work on."""
    read: int
    """Bytes that the process asked the kernel for."""


class Trainer:
    """A network and loaders of one library, in a process of its own.

    Args:
        network: what is trained.
        source: beton of the full source.
        cold: drop the file from the page cache before each epoch, and read it as files that do not
            fit into memory are read: the samples of the coming batches (stock: their pages).
        device: where the network is.
    """

    def __init__(self, network: Network, source: Path, cold: bool, device: str) -> None:
        self.network, self.cold, self.device = network, cold, torch.device(device)
        self.loaders: dict[Side, Any] = {}
        config = Config(
            train=source,
            run=source.parent,  # nothing is written
            arch=network.arch,
            resolution=network.resolution,
            batch_size=network.batch_size,
            lr=LR,
            schedule="constant",
            warmup=0.0,
        )
        self.state = _state(config, Processes(self.device))

    def open(self, side: Side) -> None:
        """Build the loader of a side, and take one batch of it through the step."""
        self.loaders[side] = self._loader(side)
        self._train(self.loaders[side], num_steps=1)

    def epoch(self, side: Side) -> Epoch:
        """Train one epoch, every sample once."""
        loader = self.loaders[side]
        if self.cold and side.beton is not None:
            drop_from_cache(side.beton)
        read = read_so_far()
        images, seconds, waited = self._train(loader, len(loader))
        return Epoch(seconds=seconds, images=images, waited=waited, read=read_so_far() - read)

    def _train(self, loader: Any, num_steps: int) -> tuple[int, float, float]:
        """Return images, seconds and seconds without work of `num_steps` steps."""
        state = replace(self.state, loader=loader)
        state.model.train()
        throughput, images = Throughput(self.device, quiet=True), 0
        losses = torch.zeros((), device=self.device)
        started = time.perf_counter()
        for step, (pixels, labels) in enumerate(
            throughput.batches(loader, num_steps, self.network.batch_size)
        ):
            losses += train_step(state, pixels, labels, step)
            images += len(pixels)
        if not math.isfinite(losses.item()):  # waits for the device
            raise RuntimeError("the loss is not finite")
        return images, time.perf_counter() - started, throughput.stalled

    def _loader(self, side: Side) -> Any:
        network = self.network
        if side.beton is None:
            return Synthetic(network, self.device)
        move = [] if self.device.type == "cpu" else [ToDevice(self.device, non_blocking=True)]
        size = (network.resolution, network.resolution)
        options: dict[str, Any] = {
            "fname": str(side.beton),
            "batch_size": network.batch_size,
            "num_workers": -1,
            "seed": SEED,
            "drop_last": False,  # nothing to drop: all sides have whole batches
        }
        if side.indices:
            index = dp4tl_ffcv.BetonIndex.open(side.beton)
            options["indices"] = retain_batches(index, side.keep, network.batch_size)
        options["pipelines"] = {
            "image": [*_decoders(size, stock=side.stock), ToTensor(), *move, ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *move],
            "identifier": None,
        }
        if side.stock:
            return Loader(**options, order=OrderOption.RANDOM, os_cache=not self.cold)
        cache = "extents" if self.cold else "auto"
        return dp4tl_ffcv.PrunedLoader(**options, order="random", cache=cache)

    # -- the cost of selection ---------------------------------------------------------------------
    def select(self, method: str, source: Path, target: Path, keep: float) -> float:
        """Choose classes by LM or FM, from betons to a Selection, and return the seconds.

        The surrogate has the network's architecture; its weights, which do not change the cost,
        are random. FM looks at the source, too.
        """
        config = self.state.config
        surrogate = make_model(config, open_source(config.train, None), self.state.group)
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            seen = self._features(surrogate, target, Path(folder) / "target")
            if method == "lm":
                scores = dp4tl_ffcv.label_mapping(
                    seen.predictions, self.network.num_classes, soft_votes=seen.soft_votes
                )
            else:
                known = self._features(surrogate, source, Path(folder) / "source")
                means = dp4tl_ffcv.class_means(
                    known.features, known.labels, self.network.num_classes
                )
                scores = dp4tl_ffcv.feature_mapping(seen.features, means)
            dp4tl_ffcv.select(scores, dp4tl_ffcv.BetonIndex.open(source), keep=keep)
            return time.perf_counter() - started

    def _features(self, surrogate: dp4tl_ffcv.Classifier, beton: Path, out: Path) -> Any:
        return dp4tl_ffcv.extract_features(
            surrogate, beton, out, resolution=self.network.resolution, device=self.device
        )


class Synthetic:
    """The same random pixels as every batch: what the device can train when nothing is loaded."""

    def __init__(self, network: Network, device: torch.device) -> None:
        self.batch_size = network.batch_size
        shape = (network.batch_size, 3, network.resolution, network.resolution)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.images = images.to(memory_format=torch.channels_last).to(device)
        self.labels = torch.arange(network.batch_size, device=device) % network.num_classes

    def __len__(self) -> int:
        return SYNTHETIC_STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(self.images, self.labels)] * len(self))


def _state(config: Config, group: Processes) -> TrainState:
    """Set up what the recipe sets up, but for the loader."""
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(config.seed)
    model = make_model(config, open_source(config.train, None), group)
    nothing: Any = ()
    return TrainState(
        config=config,
        group=group,
        model=model,
        network=model,
        averaged=None,
        loader=nothing,
        optimizer=make_optimizer(model, **config.optimizer_settings()),
        learning_rate=learning_rate(config, num_steps=1),
        scaler=loss_scaler("off", group.device),
        criterion=nn.CrossEntropyLoss(),
        num_steps=1,
        validation=None,
    )


def _decoders(size: tuple[int, int], *, stock: bool) -> list[Any]:
    if stock:
        return [RandomResizedCropRGBImageDecoder(size), RandomHorizontalFlip()]
    # Not imported above: the process of the other side holds stock ffcv alone.
    decoder: Callable[..., Any] = dp4tl_ffcv.RandomResizedCropRGBImageDecoder
    return [decoder(size, flip=0.5)]


def drop_from_cache(path: Path) -> None:
    """Have the system forget a file's pages, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not yet on the disk would stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_page_cache(paths: Iterable[Path]) -> None:
    """Read files, so that the next read comes from memory."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
