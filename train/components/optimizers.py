"""What steps the weights, what averages them, and the blur that some recipes put before strides."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dp4tl_ffcv.utils import BlurPoolConv

_BLURRED_CHANNELS = 16  # ffcv-imagenet's: the stem sees 3, and a blur there would cost detail


def make_optimizer(
    model: nn.Module,
    *,
    name: Literal["sgd", "adamw", "adam"],
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float,
    norm_weight_decay: bool = True,
) -> torch.optim.Optimizer:
    """Return an optimiser of the weights that need a gradient, fused where all are on a GPU.

    Args:
        model: what to train.
        name: SGD, or AdamW or Adam with torch's betas.
        lr: learning rate.
        momentum: of SGD.
        nesterov: correct the momentum, if there is any.
        weight_decay: decoupled in AdamW, part of the gradient in the others.
        norm_weight_decay: decay norms and biases too, which are the weights of one dimension.

    Raises:
        ValueError: no weight needs a gradient.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("`model` must have weights that need a gradient; got none. Unfreeze some.")
    groups: list[dict[str, Any]] = [{"params": weights}]
    if not norm_weight_decay:
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1]},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
    # A fused step takes the scale of fp16 along and so need not wait for the GPU.
    shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if all(weight.is_cuda for weight in weights):
        shared["fused"] = True
    if name != "sgd":
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        return kind(groups, **shared)
    nesterov = nesterov and momentum > 0
    optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **shared)
    if momentum > 0 and "fused" in shared:
        # Else the first step allocates it, and leaves it unwritten if fp16 has overflowed.
        for weight in weights:
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight.detach())
    return optimizer


class AveragedWeights:
    """An exponential moving average of a model's weights and buffers, on the model's device.

    After update t, counted from 1, the average is

        a_t = d_t a_{t-1} + (1 - d_t) w_t,  d_t = min(decay, t / (t + 9))

    where the second term keeps the initial weights from weighing on short runs (as TensorFlow's
    `num_updates`). Whole numbers, such as batch-norm's count of batches, are copied.

    Args:
        model: the unwrapped model, on its device.
        decay: d, in 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._current = dict(_state(model))
        self._average = {name: value.clone() for name, value in self._current.items()}
        self._floating = [
            name for name, value in self._current.items() if value.is_floating_point()
        ]
        self._others = [name for name in self._current if name not in set(self._floating)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step; the GPU is not waited for."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        average, current = (
            [values[name] for name in self._floating] for values in (self._average, self._current)
        )
        get_ema_multi_avg_fn(decay)(average, current, None)
        for name in self._others:
            self._average[name].copy_(self._current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averages; afterwards the weights that it had."""
        own = {name: value.clone() for name, value in self._current.items()}
        _copy(self._average, self._current)
        try:
            yield
        finally:
            _copy(own, self._current)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name, and how many updates they have seen."""
        return {"updates": self.updates, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned of the same model.

        Raises:
            ValueError: it is of another model.
        """
        if state["average"].keys() != self._average.keys():
            raise ValueError(
                "`state` must be the average of the same model; got other names. Pass its own."
            )
        self.updates = int(state["updates"])
        _copy(state["average"], self._average)


def add_blurpool(model: nn.Module) -> None:
    """Put a blur before every strided convolution of 16 or more channels, in place.

    As ffcv-imagenet trains with; call it before the optimiser is made.

    Raises:
        ValueError: there is no such convolution.
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
        raise ValueError(
            f"`model` must have strided convolutions of {_BLURRED_CHANNELS} or more channels to "
            "blur before; got none. Train it without blurpool."
        )
    for parent, name, part in strided:
        setattr(parent, name, BlurPoolConv(part))


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights and buffers themselves, by name, without gradients."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        yield name, value.detach()


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, value in into.items():
        value.copy_(values[name])
