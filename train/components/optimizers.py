"""Optimisers, averaged and best weights, and blur before strided convolutions."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dp4tl_ffcv.utils import BlurPoolConv, Classifier

from ..configs.common import RunConfig

_BLURRED_CHANNELS = 16  # as in ffcv-imagenet; blurring the 3 channels of the image loses detail


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return the optimiser of the trainable weights, fused if all of them are on a GPU."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if not config.norm_weight_decay:  # norms and biases are the weights of one dimension
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1]},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
    # A fused step handles the loss scale of fp16 on the GPU, without waiting for it.
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if all(weight.is_cuda for weight in weights):
        shared["fused"] = True
    if config.optimizer != "sgd":
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, **shared)
    momentum = config.momentum
    nesterov = config.nesterov and momentum > 0
    optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **shared)
    if momentum > 0 and "fused" in shared:
        # Otherwise the first step allocates the buffer, and leaves it uninitialised if fp16
        # overflows.
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight.detach())
    return optimizer


def take_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    lr: float,
    scaler: torch.amp.GradScaler | None = None,
    grad_clip: float | None = None,
) -> None:
    """Compute the gradient of a loss and take one optimiser step, without waiting for the GPU.

    `scaler` scales the loss in fp16. `grad_clip` is the largest norm of the whole gradient.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    if grad_clip is not None:
        scaler.unscale_(optimizer)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        nn.utils.clip_grad_norm_(weights, grad_clip)
    scaler.step(optimizer)
    scaler.update()


class AveragedWeights:
    """A model whose weights and buffers are the exponential moving averages of another model's.

    After update t, counted from 1, the average is

        a_t = d_t a_{t-1} + (1 - d_t) w_t,  d_t = min(decay, t / (t + 9))

    The second term limits the influence of the initial weights in short runs, like `num_updates`
    in TensorFlow. Integers, such as the batch count of batch norm, are copied.
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = copy.deepcopy(model)
        pairs = zip(self.average.state_dict().values(), model.state_dict().values(), strict=True)
        self._floating: list[tuple[Tensor, Tensor]] = []
        self._others: list[tuple[Tensor, Tensor]] = []
        for pair in pairs:
            (self._floating if pair[0].is_floating_point() else self._others).append(pair)

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step, without waiting for the GPU."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        average, current = (list(values) for values in zip(*self._floating, strict=True))
        get_ema_multi_avg_fn(decay)(average, current, None)
        for count, present in self._others:
            count.copy_(present)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers of the average, such as running means."""
        return self.average.named_buffers()

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"updates": self.updates, "average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.updates = state["updates"]
        self.average.load_state_dict(state["average"])


class BestWeights:
    """The weights of the epoch with the highest validation accuracy, the earliest on a tie."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.epoch, self.accuracy = -1, -1.0
        self.weights: dict[str, Any] = {}

    def offer(self, epoch: int, accuracy: float) -> None:
        """Save the current weights if their accuracy is the best so far."""
        if accuracy > self.accuracy:
            self.epoch, self.accuracy = epoch, accuracy
            self.weights = copy.deepcopy(self.part.state_dict())

    def restore(self) -> tuple[int, float]:
        """Put the best weights back and return their epoch and accuracy."""
        self.part.load_state_dict(self.weights)
        return self.epoch, self.accuracy

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {"epoch": self.epoch, "accuracy": self.accuracy, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.epoch, self.accuracy = state["epoch"], state["accuracy"]
        self.weights = state["weights"]


def add_blurpool(model: nn.Module) -> None:
    """Blur before every strided convolution of 16 or more channels, as ffcv-imagenet does.

    Changes the model in place.

    Raises:
        ValueError: the model has no such convolution.
    """
    strided = [
        (parent, name, part)
        for parent in model.modules()
        if not isinstance(parent, BlurPoolConv)
        for name, part in parent.named_children()
        if isinstance(part, nn.Conv2d)
        and max(part.stride) > 1
        and part.in_channels >= _BLURRED_CHANNELS
    ]
    if not strided:
        raise ValueError("`model` has no strided convolutions to blur. Train it without blurpool.")
    for parent, name, part in strided:
        setattr(parent, name, BlurPoolConv(part))
