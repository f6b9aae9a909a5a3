r"""Pretrain an encoder without labels, by MoCo v2, on a source beton or what a selection retains.

    python -m train.pretrain_moco --config moco_rn18_200 --train source_train.beton --run runs/moco
    torchrun --nproc-per-node 8 -m -- train.pretrain_moco ...  # else it takes --run for its own

Two crops of each image, from one decode, are augmented on the device. A network is trained to tell
its output for the one crop (the query) next to that of a slowly following copy for the other (the
key), among a queue of the keys of earlier images (He et al. 1911.05722, Chen et al. 2003.04297).
Losses and modules are lightly's: `pip install lightly`.

The run folder gets `config.json`, `log.jsonl`, `result.json` and `checkpoints/last.pt`: the encoder
without a head, for `dp4tl features` (then `dp4tl cluster`, and FM of pseudo-classes) and for
`train.finetune`. A finished run of the same configuration is not repeated, one that was stopped is
continued.
"""

import copy
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from ffcv.transforms import ToDevice, ToTensor, ToTorchImage
from torch import Tensor, nn

from dp4tl_ffcv import (
    BetonIndex,
    PrunedLoader,
    RandomResizedCropRGBImageDecoder,
    Selection,
    save_checkpoint,
    view_pipelines,
)
from dp4tl_ffcv.utils import RunFolder, one_line_errors, settings_of

from .components.augmentations import augment, draw
from .components.moco import MoCo, require_lightly
from .components.optimizers import make_optimizer
from .components.processes import Processes, processes
from .components.progress import Journal, Meter
from .components.resuming import Progress, Snapshot
from .components.schedules import learning_rate_factor
from .configs.command_line import parse
from .configs.self_supervised import CONFIGS, Config


def pretrain_moco(config: Config) -> dict[str, Any]:
    """Train as `config` says and return the content of `result.json`."""
    require_lightly()
    with processes() as group:
        index = BetonIndex.open(config.train)
        selection = Selection.load(config.selection) if config.selection else None
        facts = _fingerprint(config, index, selection, group.world)
        run = RunFolder(config.run, facts, overwrite=config.overwrite)
        if finished := group.in_main(run.finished):
            if group.main:
                print(f"{config.run}: finished before, reused")
            return finished
        if selection:
            selection.check(index)
        num_samples = len(selection) if selection else index.num_samples
        batch_size = _batch_of_a_process(config, group, num_samples)
        group.in_main(partial(run.start, resume=config.resume))

        # -- set up ------------------------------------------------------------------------------
        parts = set_up(config, group, selection, batch_size)
        snapshot = Snapshot(run.checkpoints / "resume.pt", parts.stateful)
        resumed = group.in_main(snapshot.path.exists)
        progress = snapshot.load() if resumed else Progress()
        journal = Journal(run, active=group.main, first_step=progress.step)
        progress.warm_up_seconds += warm_up(parts)

        # -- train -------------------------------------------------------------------------------
        while progress.step < parts.num_steps:
            train_epoch(parts, progress, journal)
            if progress.step == parts.num_steps or progress.epoch % config.save_every == 0:
                group.in_main(partial(snapshot.save, progress))

        # -- finish ------------------------------------------------------------------------------
        checkpoint = run.checkpoints / "last.pt"
        encoder = parts.moco.encoder
        encoder.trained_on = index.fingerprint
        group.in_main(partial(save_checkpoint, checkpoint, encoder))
        journal.close()
        result = {
            "settings": settings_of(config),  # with the paths, which may change later
            "checkpoint": str(checkpoint),
            "retained_samples": num_samples,
            "steps": progress.step,
            "images": progress.images,
            "pretrain_seconds": progress.seconds,
            "warm_up_seconds": progress.warm_up_seconds,
            **progress.rates(),
            "loss": progress.loss,
            "world": group.world,
        }
        if group.main:
            print(
                f"{config.run}: {num_samples} images, {progress.step} steps, "
                f"{progress.seconds:.1f} s, {result['images_per_second']:.0f} images/s, "
                f"{result['stall_share']:.1%} of it waiting for the loader, "
                f"loss {progress.loss:.3f}"
            )
        written = group.in_main(partial(run.finish, result))
        if group.main:
            snapshot.remove()
        return written


@dataclass(frozen=True)
class Parts:
    """What a training step works on."""

    config: Config
    group: Processes
    moco: MoCo
    query: nn.Module
    """The query network of `moco`, with gradients of all processes."""
    loader: PrunedLoader
    optimizer: torch.optim.Optimizer
    num_steps: int

    @property
    def stateful(self) -> dict[str, Any]:
        """What changes in a run, by name: both networks, the queue and the optimiser."""
        return {"moco": self.moco, "optimizer": self.optimizer}


def set_up(config: Config, group: Processes, selection: Selection | None, batch_size: int) -> Parts:
    """Make the networks, the loader of `batch_size` images a process, and the optimiser."""
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    torch.manual_seed(config.seed)  # the same first weights and the same queue in all processes
    moco = MoCo(config, distributed=group.world > 1)
    moco = moco.to(memory_format=torch.channels_last).to(group.device)
    moco.keep_place_on_host()
    loader = two_views(config, group, selection, batch_size)
    optimizer = make_optimizer(
        moco.query,
        name="sgd",
        lr=config.lr,
        momentum=config.momentum,
        nesterov=False,
        weight_decay=config.weight_decay,
    )
    return Parts(
        config=config,
        group=group,
        moco=moco,
        query=group.wrap(moco.query),
        loader=loader,
        optimizer=optimizer,
        num_steps=config.iterations or config.epochs * len(loader),
    )


def train_epoch(parts: Parts, progress: Progress, journal: Journal) -> None:
    """Make the steps of the next epoch, or of what is left of the run."""
    config, group = parts.config, parts.group
    parts.loader.set_epoch(progress.epoch)
    group.seed(config.seed, progress.epoch)
    num_steps = min(len(parts.loader), parts.num_steps - progress.step)
    meter = Meter(
        group.device,
        description=f"pretrain_moco {config.run.name}, step {progress.step}/{parts.num_steps}",
        steps_after=parts.num_steps - progress.step - num_steps,
        quiet=not group.main,
    )
    total_loss = torch.zeros((), device=group.device)
    started = time.perf_counter()
    parts.moco.train()
    per_step = parts.loader.batch_size * group.world
    for first, second in meter.batches(parts.loader, num_steps, per_step):
        loss = train_step(parts, first, second, progress)
        total_loss += loss  # stays on the device: no wait for the GPU in the loop
        progress.step += 1
        progress.images += per_step
        if progress.step % config.log_every == 0:
            journal.loss(progress.step, loss)
    progress.end_epoch(total_loss, num_steps, started, meter, group)
    group.average(parts.moco.running_statistics())
    journal.flush()
    progress.check_loss(config.lr)
    figures = {"loss": progress.loss, "seconds": progress.seconds, **progress.rates()}
    journal.write("epoch", progress.step, **figures)


def train_step(parts: Parts, first: Tensor, second: Tensor, progress: Progress) -> Tensor:
    """Step on one batch and return its loss; nothing here waits for the GPU."""
    for weights in parts.optimizer.param_groups:
        weights["lr"] = learning_rate(parts, progress.step)
    loss = contrastive_loss(parts, first, second, (progress.epoch, progress.step))
    parts.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parts.optimizer.step()
    return loss.detach()


def learning_rate(parts: Parts, step: int) -> float:
    """Return the learning rate of a step: along a cosine, behind the warm-up if there is one."""
    config = parts.config
    highest = config.lr * (parts.group.world if config.lr_per == "process" else 1)
    return highest * learning_rate_factor(
        step,
        num_steps=parts.num_steps,
        steps_per_epoch=len(parts.loader),
        schedule="cosine",
        warmup=config.warmup,
    )


def contrastive_loss(parts: Parts, first: Tensor, second: Tensor, key: tuple[int, ...]) -> Tensor:
    """Move the key network on, and return the loss of a batch; the batch's keys join the queue.

    Args:
        parts: of the run.
        first: crops for the queries, uint8 `(B, 3, H, W)`.
        second: other crops of the same images, for the keys.
        key: what the augmentations depend on, beside seed, process and view.
    """
    from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum

    config, group, moco = parts.config, parts.group, parts.moco
    key, distributed = (config.seed, *key, group.rank), group.world > 1
    with torch.no_grad():
        update_momentum(moco.query, moco.key, config.key_momentum)
        # As bytes, before the augmentations: that is a quarter of what processes exchange.
        second, shuffle = batch_shuffle(second, distributed)
        first, second = (
            augment(crops, draw(len(crops), config, (*key, view), group.device))
            for view, crops in enumerate((first, second))
        )
    on_gpu = group.device.type == "cuda"
    with torch.autocast(group.device.type, torch.bfloat16, enabled=on_gpu and config.amp == "bf16"):
        queries = parts.query(first)
        with torch.no_grad():
            keys = batch_unshuffle(moco.key(second), shuffle, distributed)
    loss: Tensor = moco.loss(queries.float(), keys.float())
    return loss


def two_views(
    config: Config, group: Processes, selection: Selection | None, batch_size: int
) -> PrunedLoader:
    """Load two random crops of each image, from one decode, in whole batches.

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
    fields = BetonIndex.open(config.train).fields
    return PrunedLoader(
        config.train,
        batch_size,
        num_workers=group.threads(config.num_workers),
        order=config.order,
        seed=config.seed,
        pipelines={**{field.name: None for field in fields}, **views},
        drop_last=True,
        selection=selection,
        cache=config.cache,
        distributed=group.world > 1,
    )


def warm_up(parts: Parts) -> float:
    """Take a batch through a copy of the networks and return the seconds.

    What is compiled or set up at first use is then not counted as training.
    """
    started = time.perf_counter()
    epoch = parts.loader.next_epoch
    first, second = next(iter(parts.loader))
    parts.loader.set_epoch(epoch)
    moco = copy.deepcopy(parts.moco).train()
    contrastive_loss(replace(parts, moco=moco, query=moco.query), first, second, (0, 0)).backward()
    if parts.group.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _batch_of_a_process(config: Config, group: Processes, num_samples: int) -> int:
    """Return the images of a step in one process; refuse what neither queue nor data can have."""
    per_step = config.batch_per == "step"
    batch_size = group.per_process(config.batch_size) if per_step else config.batch_size
    in_all = batch_size * group.world
    if in_all > num_samples:
        raise ValueError(
            f"`batch_size` must be at most the {num_samples} retained samples; got {in_all} a "
            "step. Lower it."
        )
    if config.queue % in_all:
        raise ValueError(
            f"`queue` must be a multiple of the {in_all} images of a step; got {config.queue}. "
            "Round it."
        )
    return batch_size


def _fingerprint(
    config: Config, index: BetonIndex, selection: Selection | None, world: int
) -> dict[str, Any]:
    """Everything that the result depends on: the settings, and what the files hold.

    Not where the files are, nor into how many processes the steps are divided.
    """
    settings = settings_of(config)
    for name in ("overwrite", "resume", "log_every", "save_every", "num_workers", "cache"):
        del settings[name]
    for name in ("run", "train", "selection"):
        del settings[name]
    return {
        **settings,
        "processes": world if "process" in (config.batch_per, config.lr_per) else None,
        "train_fingerprint": index.fingerprint,
        "retained": selection.digest() if selection else None,
    }


if __name__ == "__main__":
    with one_line_errors("train.pretrain_moco"):
        pretrain_moco(parse(Config, CONFIGS, description=__doc__))
