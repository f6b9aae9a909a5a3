r"""Pretrain an encoder without labels, by MoCo v2, on a source beton or the samples of a selection.

    dp4tl pretrain-moco --config moco_rn18_200 --train source_train.beton --run runs/moco
    torchrun --nproc-per-node 8 --no-python -- dp4tl pretrain-moco ...

Each image is decoded once and cropped twice; the crops are augmented on the device. The query
network encodes one crop. The key network, a moving average of the query network, encodes the other.
The query network learns to find the key of the same image among the keys of earlier images
(arXiv 1911.05722, 2003.04297). Losses and modules come from lightly:
`pip install '.[moco]'` or `pip install lightly`.

The run folder gets `config.json`, `log.jsonl`, `result.json` and `checkpoints/last.pt`: the encoder
without a head, for `dp4tl features` (then `dp4tl cluster`, and feature mapping of pseudo-classes)
and for `dp4tl finetune`. A finished run with the same settings is not repeated, and a stopped run
continues where it stopped.
"""

from dp4tl_ffcv.utils import one_line_errors

from .configs.command_line import parse
from .configs.pretrain_moco import CONFIGS, Config

if __name__ == "__main__":  # before the imports below, which take seconds
    with one_line_errors(Config):
        arguments = parse(Config, CONFIGS, description=__doc__)

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dp4tl_ffcv import PrunedLoader, RandomResizedCropRGBImageDecoder, view_pipelines
from dp4tl_ffcv.utils import requires

from .components.augmentations import augment, draw
from .components.data import Source, open_source
from .components.moco import MoCo
from .components.optimizers import make_optimizer, take_step
from .components.precision import autocast
from .components.processes import Processes, processes
from .components.schedules import learning_rate
from .components.session import Session
from .components.warm_up import try_batch

# isort: split
# After dp4tl_ffcv, because ffcv alone compiles for seconds while it is imported.
from ffcv.transforms import ToDevice, ToTensor, ToTorchImage


def pretrain_moco(config: Config) -> dict[str, Any]:
    """Pretrain an encoder and return the content of `result.json`."""
    with requires("lightly", "pretrain_moco"):
        import lightly  # noqa: F401  # here, before the run folder is made
    with processes() as group:
        source = open_source(config.beton("train"), config.selection)
        session = Session("pretrain_moco", config, group, source.fingerprints())
        if finished := session.finished():
            return finished
        batch_size = batch_of_process(config, group, source.num_samples)
        session.start()
        state = set_up(config, group, source, batch_size)
        session.resume(moco=state.moco, optimizer=state.optimizer)
        first_loss = partial(loss_of, state, key=(0, 0))
        session.warm_up(lambda: try_batch(state.moco, state.loader, first_loss))

        while session.step < state.num_steps:
            state.moco.train()
            for first, second in session.batches(state.loader, state.num_steps):
                loss = loss_of(state, first, second, key=(session.epoch, session.step))
                take_step(state.optimizer, loss, lr=state.learning_rate(session.step))
                session.count(loss.detach(), len(first))
            session.end_epoch()
            group.average_statistics(state.moco.encoder.named_buffers())
            session.write_epoch()
            session.save(last=session.step == state.num_steps)

        state.moco.encoder.trained_on = source.index.fingerprint
        return session.finish(
            state.moco.encoder,
            f"{source.num_samples} images, {session.counters}",
            retained_samples=source.num_samples,
            **session.counters.result("pretrain"),
        )


# -- set-up --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step uses."""

    config: Config
    group: Processes
    moco: MoCo
    query: nn.Module
    """The query network of `moco`, in DistributedDataParallel."""
    loader: PrunedLoader
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    """Learning rate by step."""
    num_steps: int
    """Steps of the whole run."""


def set_up(config: Config, group: Processes, source: Source, batch_size: int) -> TrainState:
    """Make the networks, the loader with `batch_size` images per process, and the optimiser."""
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    torch.manual_seed(config.seed)  # the same initial weights and queue in all processes
    moco = MoCo(config, distributed=group.world_size > 1)
    moco = moco.to(memory_format=torch.channels_last).to(group.device)
    moco.keep_place_on_host()
    loader = two_views(config, group, source, batch_size)
    num_steps = config.iterations or config.epochs * len(loader)
    return TrainState(
        config=config,
        group=group,
        moco=moco,
        query=group.wrap(moco.query),
        loader=loader,
        optimizer=make_optimizer(moco.query, config),
        learning_rate=learning_rate(config, num_steps, group.world_size),
        num_steps=num_steps,
    )


def batch_of_process(config: Config, group: Processes, num_samples: int) -> int:
    """Return the images of this process in a step, which must fit the queue and the samples."""
    batch_size = group.batch_size(config)
    in_all = batch_size * group.world_size
    if in_all > num_samples:
        raise ValueError(
            f"`batch_size` gives {in_all} images per step, but only {num_samples} samples are "
            "retained. Lower it."
        )
    if config.queue % in_all:
        raise ValueError(
            f"`queue` must be a multiple of the {in_all} images of a step; got {config.queue}."
        )
    return batch_size


def two_views(config: Config, group: Processes, source: Source, batch_size: int) -> PrunedLoader:
    """Return a loader of two random crops of each image, from one decode, in whole batches.

    Yields two uint8 `(B, 3, resolution, resolution)`.
    """
    crops = {
        name: RandomResizedCropRGBImageDecoder(
            (config.resolution, config.resolution),
            scale=(config.min_scale, 1.0),
            flip=0.5 if config.flip else 0.0,
        )
        for name in ("image", "image_2")
    }
    move = [] if group.device.type == "cpu" else [ToDevice(group.device)]
    views = view_pipelines(crops, lambda: [ToTensor(), *move, ToTorchImage()])
    return PrunedLoader(
        source.index,
        batch_size,
        num_workers=config.num_workers,
        timeout=config.timeout,
        order=config.order,
        seed=config.seed,
        pipelines={**{field.name: None for field in source.index.fields}, **views},
        drop_last=True,
        selection=source.selection,
        cache=config.cache,
        distributed=group.world_size > 1,
    )


# -- training ------------------------------------------------------------------------------------
def loss_of(state: TrainState, first: Tensor, second: Tensor, key: tuple[int, ...]) -> Tensor:
    """Update the key network, return the loss of a batch, and put its keys into the queue.

    Args:
        state: state of the run.
        first: crops for the queries, uint8 `(B, 3, H, W)`.
        second: other crops of the same images, for the keys.
        key: key of the augmentations' random numbers, in addition to seed, rank and view.
    """
    from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum

    config, group, moco = state.config, state.group, state.moco
    key, distributed = (config.seed, *key, group.rank), group.world_size > 1
    with torch.no_grad():
        update_momentum(moco.query, moco.key, config.key_momentum)
        # Shuffled as bytes, before the augmentations: a quarter of the traffic between processes.
        second, shuffle = batch_shuffle(second, distributed)
        first, second = (
            augment(crops, draw(len(crops), config, (*key, view), group.device))
            for view, crops in enumerate((first, second))
        )
    with autocast(config.amp, group.device):
        queries = state.query(first)
        with torch.no_grad():
            keys = batch_unshuffle(moco.key(second), shuffle, distributed)
    loss: Tensor = moco.loss(queries.float(), keys.float())
    return loss


if __name__ == "__main__":
    with one_line_errors(arguments):
        pretrain_moco(arguments)
