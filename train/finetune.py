r"""Finetune a pretrained classifier on a target, with a new head: a linear probe or all weights.

    dp4tl finetune --config oxford_pets_linear_probe \
        --checkpoint runs/pets_lm_40/checkpoints/last.pt \
        --train pets_train.beton --val pets_val.beton --test pets_test.beton \
        --run runs/pets_lm_40_probe
    torchrun --nproc-per-node 8 --no-python -- dp4tl finetune --config sun397_full_finetuning ...

The mode from_scratch trains all weights without a checkpoint, for comparison. The epoch is chosen
on the validation split; the test split is read once, for the chosen epoch. The run folder gets
`config.json`, `log.jsonl`, `checkpoints/best.pt` and `result.json`. A finished run with the same
settings is not repeated, and a stopped run on all weights continues where it stopped.
"""

from dp4tl_ffcv.utils import one_line_errors

from .configs.command_line import parse
from .configs.common import SPLITS
from .configs.finetune import CONFIGS, Config

if __name__ == "__main__":  # before the imports below, which take seconds
    with one_line_errors(Config):
        arguments = parse(Config, CONFIGS, description=__doc__)

import time
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dp4tl_ffcv import BetonIndex, build_model, load_checkpoint, training_loader
from dp4tl_ffcv.utils import Classifier, checkpoint_of, replace_head, sha256_of_file

from .components.data import names_of, open_splits
from .components.optimizers import BestWeights, make_optimizer, take_step
from .components.precision import autocast, loss_scaler
from .components.processes import processes
from .components.schedules import learning_rate
from .components.session import Session
from .components.validation import Validation
from .components.warm_up import try_batch


def finetune(config: Config) -> dict[str, Any]:
    """Finetune a classifier and return the content of `result.json`."""
    with processes() as group:
        splits = open_splits(**{split: config.beton(split) for split in SPLITS})
        if config.mode == "linear_probe" and group.world_size > 1:
            raise ValueError(
                "the mode linear_probe trains in one process, on features in memory. Start it "
                "without torchrun."
            )
        inputs = {name: index.fingerprint for name, index in splits.items()} | {"checkpoint": ""}
        pretrained = None
        if config.mode != "from_scratch":
            weights = checkpoint_of(str(config.checkpoint))
            pretrained = load_checkpoint(weights, arch=config.arch)
            inputs["checkpoint"] = sha256_of_file(weights)
        session = Session("finetune", config, group, inputs, checkpoint="best.pt")
        if finished := session.finished():
            return finished
        session.start()
        torch.manual_seed(config.seed)
        num_classes = splits["train"].num_classes
        if pretrained:
            model = replace_head(pretrained, num_classes)
        else:
            model = build_model(str(config.arch), num_classes)
            model.trained_on = splits["train"].fingerprint
        model.class_names = names_of(splits["train"], range(num_classes))
        model.to(memory_format=torch.channels_last).to(group.device)

        train = train_probe if config.mode == "linear_probe" else train_all
        trained = train(model, splits, session, config)

        tested = evaluation(splits["test"], config).accuracies(model, group)
        accuracy, per_class = tested["val_accuracy"], tested["val_accuracy_per_class"]
        worst = min(per_class, key=lambda name: per_class[name])
        class_mean = sum(per_class.values()) / len(per_class)
        return session.finish(
            model,
            f"{config.mode}, epoch {trained['best_epoch']} chosen, test accuracy {accuracy:.3f}, "
            f"class mean {class_mean:.3f}, worst class {per_class[worst]:.3f}",
            mode=config.mode,
            **trained,
            test_accuracy=accuracy,
            test_accuracy_class_mean=class_mean,
            test_accuracy_worst_class=per_class[worst],
            worst_class=worst,
            test_accuracy_per_class=per_class,
            test_samples=splits["test"].num_samples,
        )


# -- all weights ---------------------------------------------------------------------------------
def train_all(
    model: Classifier, splits: dict[str, BetonIndex], session: Session, config: Config
) -> dict[str, Any]:
    """Train all weights on augmented images, and leave the weights of the best epoch."""
    group = session.processes
    loader = training_loader(
        splits["train"],
        batch_size=group.batch_size(config),
        resolution=config.resolution,
        seed=config.seed,
        min_scale=config.min_scale,
        flip=config.flip,
        num_workers=config.num_workers,
        timeout=config.timeout,
        device=group.device,
        distributed=group.world_size > 1,
    )
    num_steps = config.epochs * len(loader)
    network = group.wrap(model)
    optimizer = make_optimizer(model, config)
    rate = learning_rate(config, num_steps, group.world_size)
    scaler = loss_scaler(config.amp, group.device)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    best = BestWeights(model)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with autocast(config.amp, group.device):
            loss: Tensor = criterion(network(images), labels)
        return loss

    session.resume(model=model, optimizer=optimizer, scaler=scaler, best=best)
    session.warm_up(lambda: try_batch(model, loader, loss_of))
    while session.epoch < config.epochs:
        network.train()
        for images, labels in session.batches(loader, num_steps):
            loss = loss_of(images, labels)
            take_step(optimizer, loss, lr=rate(session.step), scaler=scaler)
            session.count(loss.detach(), len(images))
        session.end_epoch()
        group.average_statistics(model.named_buffers())
        accuracy = evaluation(splits["val"], config).accuracies(model, group)["val_accuracy"]
        best.offer(session.epoch - 1, accuracy)
        session.write_epoch(epoch=session.epoch - 1, val_accuracy=accuracy)
        session.save(last=session.epoch == config.epochs)
    best_epoch, accuracy = best.restore()
    return {
        "best_epoch": best_epoch,
        "val_accuracy": accuracy,
        **session.counters.result("finetune"),
    }


# -- linear probe --------------------------------------------------------------------------------
def train_probe(
    model: Classifier, splits: dict[str, BetonIndex], session: Session, config: Config
) -> dict[str, Any]:
    """Train the head on features that are computed once, and leave the head of the best epoch."""
    session.resume()
    device = session.processes.device
    train, val = (evaluation(splits[name], config) for name in ("train", "val"))
    session.warm_up(lambda: frozen_features(model, train, device, num_batches=1))
    started = time.perf_counter()
    features, labels = frozen_features(model, train, device)
    val_features, val_labels = frozen_features(model, val, device)
    head, best = model.head, BestWeights(model.head)
    optimizer = make_optimizer(head, config)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    rate = learning_rate(config, config.epochs * -(-len(labels) // config.batch_size))
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(labels)).to(labels.device).split(config.batch_size):
            loss = criterion(head(features[rows]), labels[rows])
            take_step(optimizer, loss, lr=rate(session.step))
            session.count(loss.detach(), len(rows))
        with torch.inference_mode():
            accuracy = (head(val_features).argmax(1) == val_labels).float().mean().item()
        session.log.flush()
        session.write("epoch", epoch=epoch, val_accuracy=accuracy)
        best.offer(epoch, accuracy)
    best_epoch, accuracy = best.restore()
    return {
        "best_epoch": best_epoch,
        "val_accuracy": accuracy,
        "finetune_seconds": time.perf_counter() - started,
        "warm_up_seconds": session.counters.warm_up_seconds,
    }


@torch.no_grad()
def frozen_features(
    model: Classifier, split: Validation, device: torch.device, num_batches: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the inputs of the head `(n, D)` and the labels `(n,)`, of all batches or the first."""
    model.eval()
    batches = islice(split.batches(split.ids, device), num_batches)
    parts = [(model.features(images)[1].float(), labels.clone()) for images, labels in batches]
    features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, labels


# -- evaluation ----------------------------------------------------------------------------------
def evaluation(index: BetonIndex, config: Config) -> Validation:
    """Return the evaluation of a split: the centre crop of each sample."""
    return Validation(
        index=index,
        ids=np.arange(len(index)),
        batch_size=config.batch_size,
        resolution=config.val_resolution or config.resolution,
        crop_ratio=config.crop_ratio,
        num_workers=config.num_workers,
        timeout=config.timeout,
        amp="off" if config.mode == "linear_probe" else config.amp,
    )


if __name__ == "__main__":
    with one_line_errors(arguments):
        finetune(arguments)
